"""`pika tune`: chooses a policy and its knob on validation problems and writes the file that a configuration names.

`pika train` has chosen the probes' site and calibration on the same problems, so what the file says of accuracy and
saving is in-sample; test problems, which neither has seen, tell what to count on.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from offline.conformal import SAYS, Guarantee, guarantee, reach
from offline.evaluate import DataError, Outcomes, read_outcomes, split_name
from offline.policy_search import SIMPLEST_FIRST, Target, TuneError, Tuning, Validation, tune
from probes.base import ProbeError
from probes.hub_errors import HubAwayError
from routing_policies.base import PolicyError
from routing_policies.costs import expected_cost, tier_cost
from server.config import ConfigError, Settings, load, pool_sha256, prefill_usd_per_token
from server.sections import MeanTokens

if TYPE_CHECKING:
    from probes.artifact import Artifact

NOTE = (
    "accuracies and savings are in-sample: the probes' site, their calibration and this policy were chosen on the "
    "same problems"
)
EXAMPLES = """examples:
  pika tune pool.yaml --data rollouts.parquet                            as accurate as the best single arm, for less
  pika tune pool.yaml --data rollouts.parquet --target accuracy=0.9      the least cost at 90% right
  pika tune pool.yaml --data rollouts.parquet --target cost=0.0002       the most right for 0.0002 USD per query
  pika tune pool.yaml --data fresh.parquet --guarantee 0.9               min_success that holds with 90% confidence
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        settings = load(options.config)
        out = options.out or settings.resolve(settings.policy.tuned or "policy.tuned.json")
        outcomes = read_outcomes(options.data, options.split, list(settings.arms))
        if options.split == "train":
            print("pika tune: the probes were fitted on the train split, so they flatter themselves", file=sys.stderr)
        from offline.label import load_probes  # torch: after all that can fail at once

        with Console(stderr=True).status(f"Scoring {len(outcomes.problems)} problems with the probes"):
            artifacts = load_probes(settings)
            data = validation(settings, artifacts, outcomes)
        held = None
        if options.guarantee is not None:
            held = guarantee(data.success, data.cost, data.success_rate, options.guarantee, options.seed)
        tuning = tune(data, options.target, options.policies, options.seed, held)
        probes = {name: artifact.predictions_sha256 for name, artifact in artifacts.items()}
        result = _result(pool_sha256(settings, probes), list(settings.arms), tuning, outcomes, options)
        if held is not None:
            result["guarantee"] = _guarantee(held, list(artifacts.values()), outcomes, options)
    except (ConfigError, DataError, PolicyError, ProbeError, TuneError) as error:
        print(f"pika tune: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    try:
        out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        print(f"pika tune: cannot write {out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 1
    _show(tuning, list(settings.arms))
    brief = {key: value for key, value in result.items() if key != "table"}
    if held is not None:
        print(reach(held, options.guarantee))
        brief["guarantee"] = {key: value for key, value in result["guarantee"].items() if key != "table"}
    print(json.dumps({"file": str(out), **brief}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika tune",
        description="Choose a policy and its knob on validation problems, and write them to a file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="the pool's YAML file")
    parser.add_argument("--data", type=Path, required=True, help="parquet that `pika rollouts` wrote")
    parser.add_argument("--split", type=_split, default="validation", help="its problems to choose on; never test")
    parser.add_argument(
        "--target", type=_target, default="accuracy=always-best", help="accuracy=always-best | accuracy=0..1 | cost=USD"
    )
    parser.add_argument("--policies", type=_policies, default=SIMPLEST_FIRST, help=f"of {','.join(SIMPLEST_FIRST)}")
    parser.add_argument(
        "--guarantee",
        type=_level,
        metavar="CONFIDENCE",
        help="make min_success hold its target with this confidence, such as 0.9: thresholds for every target, from "
        "problems that neither trained nor calibrated the probes",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: policy.tuned of CONFIG)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, and of the guarantee's order")
    return parser


def _split(text: str) -> str:
    if text == "test":
        raise argparse.ArgumentTypeError("the test split is for the final figures: choose on validation")
    return split_name(text)


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = 0.0
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no confidence: a number between 0 and 1, such as 0.9")
    return level


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in SIMPLEST_FIRST:
            raise argparse.ArgumentTypeError(f"{name!r} cannot be tuned: choose of {','.join(SIMPLEST_FIRST)}")
    return names


def validation(settings: Settings, artifacts: "Mapping[str, Artifact]", outcomes: Outcomes) -> Validation:
    """What the gateway would know of these problems, and what came of them.

    Raises:
        ProbeError: a probe does not fit its probe model.
        ConfigError: a pool model's path leads nowhere, or an arm's mean tokens are not known.
    """
    means = _mean_tokens(settings, artifacts)
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
        prefill_usd=_prefill_usd(settings, list(artifacts.values()), outcomes.problems),
    )


def _mean_tokens(settings: Settings, artifacts: "Mapping[str, Artifact]") -> list[MeanTokens]:
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


def _prefill_usd(settings: Settings, artifacts: "list[Artifact]", problems: list[str]) -> float:
    """What the probe models' prefill of one problem costs, on average."""
    from probes.artifact import distinct_passes
    from probes.prompt import Renderer

    total = 0.0
    # As the gateway charges it: a probe that reads no activation only counts tokens.
    for pass_ in distinct_passes([one for one in artifacts if one.probe.site is not None]):
        price = prefill_usd_per_token(settings, pass_.probe_model)
        if price is None:
            print(
                f"pika tune: the prefill of {pass_.probe_model} counts as free: set engine.usd_per_million_tokens",
                file=sys.stderr,
            )
            continue
        renderer = Renderer(pass_)
        rendered = [renderer.render([{"role": "user", "content": problem}]) for problem in problems]
        total += price * sum(len(prompt.token_ids) for prompt in rendered) / len(rendered)
    return total


def _result(
    pool_hash: str, arms: list[str], tuning: Tuning, outcomes: Outcomes, options: argparse.Namespace
) -> dict[str, Any]:
    """What the file holds; the gateway reads pool_sha256, policy, knobs and table.

    A request may ask for any of the policies: each finds its own knob among `knobs`.
    """
    chosen = asdict(tuning.chosen)
    del chosen["knobs"]
    return {
        "schema_version": 1,
        "pool_sha256": pool_hash,
        "policy": chosen.pop("policy"),
        "knobs": {name: value for candidate in tuning.candidates for name, value in candidate.knobs.items()},
        "target": str(options.target),
        "note": NOTE,
        "on_validation": chosen,
        "best": arms[tuning.best_arm],
        "always_best": asdict(tuning.always_best),
        "data": {
            "file": options.data.name,
            "sha256": outcomes.sha256,
            "split": options.split,
            "problems": len(outcomes.problems),
        },
        "seed": options.seed,
        "candidates": [asdict(candidate) for candidate in tuning.candidates],
        "table": tuning.table,
        "guarantee": None,
    }


def _guarantee(
    held: Guarantee, artifacts: "list[Artifact]", outcomes: Outcomes, options: argparse.Namespace
) -> dict[str, Any]:
    """What the file says of `min_success`; the gateway reads level and table."""
    seen = any(_saw(artifact, outcomes.sha256, options.split) for artifact in artifacts)
    if seen:
        print(
            f"pika tune: the {options.split} problems chose or calibrated probes, so the guarantee holds only as far "
            "as these do not flatter themselves there: give it problems of its own (`pika rollouts --seed`)",
            file=sys.stderr,
        )
    return {
        "level": options.guarantee,
        "problems": len(outcomes.problems),
        "says": SAYS.format(level=options.guarantee),
        "problems_chose_probes": seen,
        "table": held,
    }


def _saw(artifact: "Artifact", sha256: str, split: str) -> bool:
    """Whether a probe was fitted, chosen or calibrated on these problems."""
    training = artifact.card.training
    calibrated_on = training.get("calibrated_on")
    if not isinstance(calibrated_on, dict):  # a card may hold anything there
        calibrated_on = {}
    return (sha256, split) == (calibrated_on.get("sha256"), calibrated_on.get("split")) or (
        sha256 == training.get("rollouts_sha256") and split in ("train", "validation")
    )


def _show(tuning: Tuning, arms: list[str]) -> None:
    table = Table(box=None, header_style="bold", title="Policies at the target, per query", padding=(0, 1, 0, 0))
    table.add_column("policy")
    for heading in ("knob", "predicted", "corrected", "measured [95%]", "USD", "saving"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in (*tuning.candidates, tuning.always_best):
        low, high = candidate.measured_interval
        always = candidate is tuning.always_best
        table.add_row(
            f"always {arms[tuning.best_arm]}" if always else candidate.policy,
            " ".join(f"{value:.3g}" for value in candidate.knobs.values()),
            f"{candidate.predicted_accuracy:.3f}",
            f"{candidate.accuracy:.3f}",
            f"{candidate.measured_accuracy:.3f} [{low:.3f}, {high:.3f}]",
            f"{candidate.cost_usd:.2e}",
            "" if always else f"{candidate.saving_vs_best:.1%}",
            style="bold green" if candidate is tuning.chosen else None,
        )
    Console().print(table)
