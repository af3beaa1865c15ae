"""Every policy over its knob, the knob chosen on validation problems and judged on test problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from offline.evaluation.cascade_search import step_thresholds
from offline.evaluation.frontier import frontier
from offline.evaluation.judge import Validation
from offline.evaluation.methods import Group, Method, Trial, routed
from offline.evaluation.sweep import choices, multipliers
from offline.policy_search import Sweep, Table, Target, best_setting, resampled_settings, sweep, sweep_policy
from routing_policies.base import FloatArray, IndexArray
from routing_policies.costs import normalise
from routing_policies.utility import QUOTIENTS

LABELS = {
    "utility": "utility (lambda)",
    "cascade": "cascade",
    "cascade:steps": "cascade (per step)",
    "min_success": "min_success",
    "target_accuracy": "target_accuracy",
    "max_success": "max_success (lambda 0)",
    "utility:original": "utility (original)",
    "utility:normalized": "utility (normalized)",
    "utility:ratio": "utility (ratio)",
    "utility:success_per_dollar": "utility (success per dollar)",
    "utility:threshold": "utility (threshold)",
    "utility:sigmoid": "utility (sigmoid)",
}
Called = tuple[str, str, Group]
"""A method's name, label and group."""
VALUE_AT_0 = 1e9
"""Instead of an infinite `value`, which ignores cost."""


@dataclass(frozen=True)
class Judged:
    """A method, and what it chooses on the test problems at every setting, (settings, n)."""

    method: Method
    arms: IndexArray
    swept: Sweep
    """The same settings on the validation problems."""

    @property
    def validation_usd(self) -> float:
        """Mean expected USD of a validation problem at the chosen setting, the probes' prefill included."""
        return float(self.swept.cost_usd[self.method.chosen])

    @property
    def corners(self) -> IndexArray:
        """The settings at the corners of the frontier on validation problems."""
        corners = frontier(self.swept.cost_usd[None], self.swept.accuracy[None])
        return np.flatnonzero(np.isin(self.swept.cost_usd, corners.cost[0]))


def settings_of(name: str, data: Validation, table: Table) -> list[dict[str, Any]]:
    """The knobs at which a method could make a difference on validation problems."""
    policy, _, variant = name.partition(":")
    scaled = normalise(data.tier_cost)
    if policy == "max_success":
        return [{}]
    if name == "cascade:steps":
        return [{"thresholds": one} for one in step_thresholds(data.success, data.cost, data.tier_cost)]
    if variant in ("original", "sigmoid"):
        against = scaled if variant == "original" else 2 / (1 + np.exp(-scaled)) - 1
        values = [1 / mu if mu > 0 else VALUE_AT_0 for mu in multipliers(data.success, against).tolist()]
        return [{"variant": variant, "value": float(f"{value:.6g}")} for value in values]
    if variant:  # no knob changes what these choose
        return [{"variant": variant}]
    return sweep_policy(policy, data, table).knobs


def run(
    name: str,
    validation: Validation,
    trial: Trial,
    target: Target,
    table: Table,
    resamples: FloatArray,
    known: Validation | None = None,
    called: Called | None = None,
) -> Judged:
    """
    Args:
        resamples: weights of resampled validation problems, (draws, n).
        known: what is known of the test problems; None: what the trial's probes say.
        called: None: as the policy is called.
    """
    known = trial.known if known is None else known
    policy, beside = name.partition(":")[0], {"table": table}
    settings = settings_of(name, validation, table)
    swept = _sweep(policy, settings, beside, validation)
    chosen = choose(swept, validation, target)
    asked = [one | beside for one in settings]
    arms = choices(policy, asked, known.success, known.cost, known.tier_cost)
    name, label, group = called or (name, LABELS[name], "policy")
    method = routed(
        trial,
        name,
        label,
        group,
        arms,
        known.prefill_usd,
        settings,
        chosen,
        peak=int(swept.accuracy.argmax()),
        resampled=resampled_settings(swept, validation, target, resamples) if len(settings) > 1 else (),
    )
    return Judged(method, arms, swept)


def choose(swept: Sweep, validation: Validation, target: Target) -> int:
    """The setting that serves the target best; where none reaches it, the one that comes nearest."""
    always_best = validation.accuracy(np.full(len(validation.success), validation.best_arm))
    place = best_setting(swept.accuracy, swept.cost_usd, target, always_best)
    if place is not None:
        return place
    return int(swept.accuracy.argmax() if target.measure == "accuracy" else swept.cost_usd.argmin())


def possible(names: Sequence[str], tier_cost: Sequence[float]) -> list[str]:
    """Without the variants that divide by the cost of an arm that is free."""
    free = min(tier_cost) <= 0
    return [name for name in names if not (free and name.partition(":")[2] in QUOTIENTS)]


def _sweep(policy: str, settings: list[dict[str, Any]], beside: dict[str, Any], data: Validation) -> Sweep:
    arms = choices(policy, [one | beside for one in settings], data.success, data.cost, data.tier_cost)
    return sweep(policy, settings, arms, data)
