"""Which policy, at which knob, serves a target best on validation problems.

Accuracy is judged by the mean *predicted* success probability of the chosen arms, corrected by what was measured
(`offline.evaluation.judge`). All of it is in-sample, where the probes' site and calibration were chosen on the same
problems. How far another set of validation problems would have moved the choice, resampled ones tell (`Spread`).

Of all policies `target_accuracy` is the optimum under the probabilities (a Lagrangian), but others say more simply what
they do. So the simplest wins that is within one standard error of the best, paired by problem (Breiman et al.,
Classification and Regression Trees, 1984, section 3.4.3).
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from offline.conformal import Guarantee
from offline.evaluate import mean_interval
from offline.evaluation.bootstrap import resampled
from offline.evaluation.judge import Validation, judge
from offline.evaluation.sweep import KNOBS, choices, grid, multipliers, of_chosen
from routing_policies.base import FloatArray, IndexArray, load
from routing_policies.costs import normalise

SIMPLEST_FIRST = ("utility", "cascade", "min_success", "target_accuracy")
TABLE_KNOTS = 50
ROUNDING = 1e-9
RESAMPLES = 200
"""Sets of validation problems by which the spread of chosen knobs is told."""

Table = list[tuple[float, float]]


class TuneError(ValueError):
    """No policy meets the target; the message says what can be had."""


@dataclass(frozen=True)
class Target:
    measure: Literal["accuracy", "cost"]
    value: float | None
    """Mean accuracy, or mean USD per query; None: the accuracy of the best single arm."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """`accuracy=always-best`, `accuracy=0.9` or `cost=0.0001`.

        Raises:
            ValueError: anything else.
        """
        if text == "accuracy=always-best":
            return cls("accuracy", None)
        measure, _, value = text.partition("=")
        with suppress(ValueError):
            number = float(value)
            if measure == "accuracy" and 0 <= number <= 1:
                return cls("accuracy", number)
            if measure == "cost" and 0 <= number < math.inf:
                return cls("cost", number)
        raise ValueError(
            f"{text!r} is no target: accuracy=always-best, accuracy=0.9 (from 0 to 1) or cost=0.0002 (USD per query)"
        )

    def __str__(self) -> str:
        return f"{self.measure}={'always-best' if self.value is None else self.value}"


@dataclass(frozen=True)
class Sweep:
    """A policy at each of its knob's values that could make a difference, on the validation problems."""

    policy: str
    knobs: list[dict[str, Any]]
    arms: IndexArray
    """(settings, n)"""
    accuracy: FloatArray
    """As judged, (settings,)."""
    cost_usd: FloatArray
    """Mean expected USD, the probes' prefill included, (settings,)."""


@dataclass(frozen=True)
class Spread:
    """How the choice of a knob varies over resampled sets of validation problems."""

    knob: tuple[float, float]
    """95% of the chosen values lie between these."""
    accuracy_sd: float
    """Standard deviation of the accuracy, on the whole set, at the chosen values."""
    saving_sd: float


@dataclass(frozen=True)
class Candidate:
    """A policy at the knob that serves the target best."""

    policy: str
    knobs: dict[str, float]
    accuracy: float
    """By which targets are judged: predicted, and corrected by what was measured."""
    predicted_accuracy: float
    """Mean predicted success probability of the chosen arms."""
    measured_accuracy: float
    """Their mean success rate."""
    measured_interval: tuple[float, float]
    """95%, over problems."""
    cost_usd: float
    """Mean expected cost of a query, the probes' prefill included."""
    saving_vs_best: float
    """1 - cost / cost of always using the best single arm, which pays for no probe."""
    spread: Spread | None = None


@dataclass(frozen=True)
class Tuning:
    chosen: Candidate
    candidates: list[Candidate]
    """One per policy that meets the target."""
    best_arm: int
    always_best: Candidate
    """What always using it gives, without any probe."""
    table: Table
    """(accuracy, mu), for `target_accuracy`."""


def tune(
    data: Validation,
    target: Target,
    policies: Sequence[str] = SIMPLEST_FIRST,
    seed: int = 0,
    guarantee: Guarantee | None = None,
) -> Tuning:
    """Choose a policy and its knob.

    Args:
        seed: the bootstrap's.
        guarantee: what `min_success` takes its threshold from.

    Raises:
        TuneError: no policy meets the target.
        PolicyError: a value is NaN, or shapes differ.
    """
    table = accuracy_table(data)
    always = sweep("always", [{}], np.full((1, len(data.success)), data.best_arm), data)
    best_cost = float(always.cost_usd[0]) - data.prefill_usd
    found = meeting(data, target, policies, table, guarantee)
    if not found:
        goal = always.accuracy[0] if target.value is None else target.value
        lowest = float(data.cost.min(axis=1).mean()) + data.prefill_usd
        raise TuneError(
            f"no policy meets {target.measure}={goal:.6g}: by these probes accuracy is at most {table[-1][0]:.4f}, "
            f"and a query costs at least {lowest:.3g} USD; choose another target"
        )
    weights = resampled(len(data.success), RESAMPLES, seed)
    candidates = [
        _candidate(swept, place, data, best_cost, seed, _spread(swept, place, data, target, best_cost, weights))
        for swept, place in found
    ]
    chosen = candidates[simplest(found, data, target.measure)]
    return Tuning(chosen, candidates, data.best_arm, _candidate(always, 0, data, best_cost, seed, None), table)


def accuracy_table(data: Validation) -> Table:
    """Accuracy -> mu, so that linear interpolation stays close to the frontier of accuracy against cost.

    Knots are added one by one where interpolation misses most: near the top, where accuracy hardly changes but cost
    does, and at the bottom, where mu has a long tail.
    """
    mus = multipliers(data.success, data.cost)  # (m,)
    accuracy, cost, _ = judge(data, np.stack([(data.success - mu * data.cost).argmax(axis=1) for mu in mus]))
    spent = cost[0]
    # What a larger mu seems to add is noise. Of equals the largest is the cheapest.
    reached = np.minimum.accumulate(accuracy[0]).round(6)
    falls = np.append(np.diff(reached) < 0, True)
    mus, spent, reached = mus[falls], spent[falls], reached[falls]
    steps = np.hypot(np.diff(reached) / (np.ptp(reached) or 1), np.diff(spent) / (np.ptp(spent) or 1))
    place = np.concatenate([[0.0], steps.cumsum()])  # along the frontier
    knots = sorted({0, len(mus) - 1})
    while len(knots) < min(TABLE_KNOTS, len(mus)):
        interpolated = np.interp(-reached, -reached[knots], mus[knots])
        miss = np.abs(np.interp(interpolated, mus, place) - place)
        miss[knots] = -1
        knots = sorted([*knots, int(miss.argmax())])
    return [(float(reached[i]), float(mus[i])) for i in reversed(knots)]


def sweep(policy: str, knobs: list[dict[str, Any]], arms: IndexArray, data: Validation) -> Sweep:
    """What the choices at some settings, (settings, n), come to."""
    accuracy, cost, _ = judge(data, arms)
    return Sweep(policy, knobs, arms, accuracy[0], cost[0])


def sweep_policy(policy: str, data: Validation, table: Table, guarantee: Guarantee | None = None) -> Sweep:
    """A policy at each of its knob's values that could make a difference.

    Raises:
        PolicyError: a value is NaN, or shapes differ.
    """
    if policy == "utility":
        values = multipliers(data.success, normalise(data.tier_cost))
    elif policy == "target_accuracy":
        values = np.unique(np.linspace(table[0][0], table[-1][0], KNOBS).round(6))
    elif policy == "min_success" and guarantee is not None:
        values = np.array([0.0, *(target for target, _ in guarantee)])
    else:  # thresholds on success probabilities
        values = grid(data.success.ravel(), 0.0, 1.0)
    knob = load(policy).knob
    assert knob is not None
    knobs = [{knob: value} for value in values.tolist()]
    beside = {"table": table, "guarantee": guarantee}
    arms = choices(policy, [one | beside for one in knobs], data.success, data.cost, data.tier_cost)
    return sweep(policy, knobs, arms, data)


def best_setting(accuracy: FloatArray, cost_usd: FloatArray, target: Target, always_best: float) -> int | None:
    """The least cost that reaches the accuracy, or the most accuracy within the cost; None where nothing does.

    Args:
        accuracy: of each setting, (settings,).
        cost_usd: (settings,).
        always_best: accuracy of the best single arm.
    """
    if target.measure == "accuracy":
        met = accuracy >= (always_best if target.value is None else target.value) - ROUNDING
        order = np.lexsort((-accuracy, cost_usd))
    else:
        assert target.value is not None
        met = cost_usd <= target.value * (1 + ROUNDING)
        order = np.lexsort((cost_usd, -accuracy))
    met_in_order = order[met[order]]
    return int(met_in_order[0]) if len(met_in_order) else None


def resampled_settings(swept: Sweep, data: Validation, target: Target, weights: FloatArray) -> list[int]:
    """Which settings resampled validation problems choose, (draws, n) weights; draws in which none serves are left
    out."""
    found = judge(data, swept.arms, weights)
    chosen = [best_setting(accuracy, cost, target, float(best)) for accuracy, cost, best in zip(*found, strict=True)]
    return [place for place in chosen if place is not None]


def _spread(
    swept: Sweep, place: int, data: Validation, target: Target, best_cost: float, weights: FloatArray
) -> Spread:
    places = resampled_settings(swept, data, target, weights) or [place]
    values = [next(iter(swept.knobs[i].values())) for i in places]
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    saving_sd = float(swept.cost_usd[places].std()) / best_cost if best_cost > 0 else 0.0
    return Spread((low, high), float(swept.accuracy[places].std()), saving_sd)


def _candidate(
    swept: Sweep, place: int, data: Validation, best_cost: float, seed: int, spread: Spread | None
) -> Candidate:
    arms = swept.arms[place]
    measured = of_chosen(data.success_rate, arms)
    cost_usd = float(swept.cost_usd[place]) if swept.knobs[place] else best_cost  # an arm alone pays for no probe
    return Candidate(
        policy=swept.policy,
        knobs=swept.knobs[place],
        accuracy=float(swept.accuracy[place]),
        predicted_accuracy=float(of_chosen(data.success, arms).mean()),
        measured_accuracy=float(measured.mean()),
        measured_interval=mean_interval(measured, seed=seed),
        cost_usd=cost_usd,
        saving_vs_best=1 - cost_usd / best_cost if best_cost > 0 else 0.0,
        spread=spread,
    )


def meeting(
    data: Validation,
    target: Target,
    policies: Sequence[str],
    table: Table,
    guarantee: Guarantee | None = None,
) -> list[tuple[Sweep, int]]:
    """The policies that meet the target, each with the setting that does so best."""
    always_best = data.accuracy(np.full(len(data.success), data.best_arm))
    swept = [sweep_policy(policy, data, table, guarantee) for policy in policies]
    places = [best_setting(one.accuracy, one.cost_usd, target, always_best) for one in swept]
    return [(one, place) for one, place in zip(swept, places, strict=True) if place is not None]


def simplest(found: Sequence[tuple[Sweep, int]], data: Validation, measure: str) -> int:
    """The simplest policy whose mean loss is within one standard error of the least."""
    arms = np.stack([swept.arms[place] for swept, place in found])
    losses = of_chosen(data.cost, arms) if measure == "accuracy" else -of_chosen(data.success, arms)  # (candidates, n)
    excess = losses - losses[losses.mean(axis=1).argmin()]
    noise = excess.std(axis=1) / math.sqrt(excess.shape[1])
    within: list[int] = np.flatnonzero(excess.mean(axis=1) <= noise).tolist()
    return min(within, key=lambda i: SIMPLEST_FIRST.index(found[i][0].policy))
