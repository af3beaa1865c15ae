"""What the gateway would know of problems before any arm answers, and what came of them."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from offline.evaluate import Outcomes
from offline.evaluation.judge import Validation
from routing_policies.costs import expected_cost, tier_cost
from server.config import ConfigError, Settings, prefill_usd_per_token
from server.sections.pool import MeanTokens

if TYPE_CHECKING:
    from probes.artifact import Artifact


def validation(settings: Settings, artifacts: "Mapping[str, Artifact]", outcomes: Outcomes) -> Validation:
    """What the gateway would know of these problems, and what came of them.

    Raises:
        ProbeError: a probe does not fit its probe model.
        ConfigError: a pool model's path leads nowhere, or an arm's mean tokens are not known.
    """
    means = mean_tokens(settings, artifacts)
    output = [count.output for count in means]
    prices = [settings.models[arm.model].usd_per_million_tokens for arm in settings.arms.values()]
    per_input, per_output = [price.input for price in prices], [price.output for price in prices]
    from offline.label import predict

    predicted = predict(settings, artifacts, outcomes.problems, settings.engine.device)
    expected = np.where(np.isnan(predicted.output_tokens), output, predicted.output_tokens)  # (n, k)
    return Validation(
        success=predicted.success,
        cost=expected_cost(outcomes.input_tokens, expected, per_input, per_output),
        success_rate=outcomes.success_rate,
        tier_cost=tuple(tier_cost([count.input for count in means], output, per_input, per_output).tolist()),
        prefill_usd=prefill_usd(settings, list(artifacts.values()), outcomes.problems),
    )


def mean_tokens(settings: Settings, artifacts: "Mapping[str, Artifact]") -> list[MeanTokens]:
    """Of every arm: the artifact's, which was measured where the probe was trained, else the configuration's."""
    means: list[MeanTokens] = []
    for name, arm in settings.arms.items():
        card = artifacts[name].card.mean_tokens if name in artifacts else None
        if card is not None:
            means.append(MeanTokens(input=card.input, output=card.output))
        elif arm.mean_tokens is not None:
            means.append(arm.mean_tokens)
        else:
            raise ConfigError(f"arms.{name} needs mean_tokens: {{input: ..., output: ...}}: its probe has none")
    return means


def prefill_usd(settings: Settings, artifacts: "list[Artifact]", problems: list[str]) -> float:
    """What the probe models' prefill of one problem costs, on average."""
    from probes.artifact import distinct_passes
    from probes.prompt import Renderer

    total = 0.0
    # As the gateway charges it: a probe that reads no activation only counts tokens.
    for pass_ in distinct_passes([one for one in artifacts if one.probe.site is not None]):
        price = prefill_usd_per_token(settings, pass_.probe_model)
        if price is None:
            print(
                f"pika: the prefill of {pass_.probe_model} counts as free: set engine.usd_per_million_tokens",
                file=sys.stderr,
            )
            continue
        renderer = Renderer(pass_)
        rendered = [renderer.render([{"role": "user", "content": problem}]) for problem in problems]
        total += price * sum(len(prompt.token_ids) for prompt in rendered) / len(rendered)
    return total


def saw(artifact: "Artifact", sha256: str, split: str) -> bool:
    """Whether a probe was fitted, chosen or calibrated on these problems."""
    training = artifact.card.training
    calibrated_on = training.get("calibrated_on")
    if not isinstance(calibrated_on, dict):  # a card may hold anything there
        calibrated_on = {}
    return (sha256, split) == (calibrated_on.get("sha256"), calibrated_on.get("split")) or (
        sha256 == training.get("rollouts_sha256") and split in ("train", "validation")
    )
