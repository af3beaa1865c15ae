"""Which policy, at which knob, serves a target best on validation problems.

Accuracy is judged by the mean *predicted* success probability of the chosen arms, for that spreads a third as much as
measured outcomes do, if probes are calibrated. Where they are not, choosing finds their errors first. So it is
corrected by the chosen arms' mean residual, measured - predicted, as far as that exceeds its noise (`corrected`).
All of it is in-sample, where the probes' site and calibration were chosen on the same problems.

Of all policies `target_accuracy` is the optimum under the probabilities (a Lagrangian), but others say more simply what
they do. So the simplest wins that is within one standard error of the best, paired by problem (Breiman et al.,
Classification and Regression Trees, 1984, section 3.4.3).
"""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Self

import numpy as np

from offline.conformal import Guarantee
from offline.evaluate import FloatArray, mean_interval
from routing_policies.base import IndexArray, build, load
from routing_policies.costs import normalise

SIMPLEST_FIRST = ("utility", "cascade", "min_success", "target_accuracy")
KNOBS = 500
"""Values of a knob that are tried."""
TABLE_KNOTS = 50
ROUNDING = 1e-9

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
class Validation:
    """What is known of n problems and k arms."""

    success: FloatArray
    """Predicted success probabilities, (n, k)."""
    cost: FloatArray
    """Expected USD of one answer, (n, k)."""
    success_rate: FloatArray
    """Measured, (n, k)."""
    tier_cost: tuple[float, ...]
    """Mean USD of one answer per arm, (k,)."""
    prefill_usd: float = 0.0
    """What the probes' own prefill costs per query, on average."""

    @property
    def best_arm(self) -> int:
        """The single arm of the highest corrected accuracy."""
        arms = range(self.success.shape[1])
        return int(np.argmax([corrected(self.success[:, arm], self.success_rate[:, arm]) for arm in arms]))

    def accuracy(self, arms: IndexArray) -> float:
        """By which targets are judged, (n,) arm indices: the best single arm's accuracy, and what these gain on it.

        Both are corrected by what was measured. The gain, a difference on the same problems, has far less noise than
        either side of it.
        """
        best = np.full(len(arms), self.best_arm)
        predicted, measured = of_chosen(self.success, best), of_chosen(self.success_rate, best)
        gain = of_chosen(self.success, arms) - predicted, of_chosen(self.success_rate, arms) - measured
        return min(max(corrected(predicted, measured) + corrected(*gain), 0.0), 1.0)


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


@dataclass(frozen=True)
class _Point:
    policy: str
    knobs: dict[str, float]
    arms: IndexArray  # (n,)
    accuracy: float
    cost_usd: float


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
    best_arms = np.full(len(data.success), data.best_arm)
    best_cost = float(of_chosen(data.cost, best_arms).mean())
    best = _Point("always", {}, best_arms, data.accuracy(best_arms), best_cost)
    goal = best.accuracy if target.value is None else target.value
    table = accuracy_table(data)
    sweeps = (_sweep(policy, data, table, guarantee) for policy in policies)
    points = [point for points in sweeps if (point := _best_point(points, target.measure, goal)) is not None]
    if not points:
        lowest = float(data.cost.min(axis=1).mean()) + data.prefill_usd
        raise TuneError(
            f"no policy meets {target.measure}={goal:.6g}: by these probes accuracy is at most {table[-1][0]:.4f}, "
            f"and a query costs at least {lowest:.3g} USD; choose another target"
        )
    always_best, *candidates = (_candidate(point, data, best.cost_usd, seed) for point in (best, *points))
    chosen = candidates[_simplest(points, data, target.measure)]
    return Tuning(chosen, candidates, data.best_arm, always_best, table)


def corrected(predicted: FloatArray, measured: FloatArray) -> float:
    """Mean of the predictions plus the part of their mean residual that exceeds its noise, (n,), (n,).

    Empirical Bayes for one residual r with standard error s: its prior variance is estimated by max(0, r^2 - s^2), so
    the share 1 - s^2 / r^2 of it is believed (Efron & Morris, JASA 68, 1973).
    """
    residual = measured - predicted
    mean, variance = float(residual.mean()), float(residual.var()) / len(residual)
    share = max(0.0, 1 - variance / mean**2) if mean else 0.0
    return float(predicted.mean()) + share * mean


def accuracy_table(data: Validation) -> Table:
    """Accuracy -> mu, so that linear interpolation stays close to the frontier of accuracy against cost.

    Knots are added one by one where interpolation misses most: near the top, where accuracy hardly changes but cost
    does, and at the bottom, where mu has a long tail.
    """
    mus = multipliers(data.success, data.cost)  # (m,)
    arms = [(data.success - mu * data.cost).argmax(axis=1) for mu in mus]
    spent = np.array([of_chosen(data.cost, chosen).mean() for chosen in arms])
    # What a larger mu seems to add is noise. Of equals the largest is the cheapest.
    reached = np.minimum.accumulate([data.accuracy(chosen) for chosen in arms]).round(6)
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


def multipliers(success: FloatArray, cost: FloatArray) -> FloatArray:
    """Cost weights between which choices change, rising from 0: quantiles of where two arms of a problem draw level.

    Args:
        success: (n, k).
        cost: (n, k), or (k,) where it is the same for all problems.
    """
    cost = np.broadcast_to(cost, success.shape)
    crossings = [np.zeros(0)]
    for i, j in combinations(range(success.shape[1]), 2):
        gain, price = success[:, i] - success[:, j], cost[:, i] - cost[:, j]
        crossings.append(gain[price != 0] / price[price != 0])
    weights = np.concatenate(crossings)
    weights = weights[np.isfinite(weights) & (weights > 0)]
    return _grid(weights, 0.0, 2 * weights.max()) if len(weights) else np.zeros(1)


def of_chosen(values: FloatArray, arms: IndexArray) -> FloatArray:
    """Each problem's value for its chosen arm: (n, k), (n,) -> (n,)."""
    chosen: FloatArray = values[np.arange(len(arms)), arms]
    return chosen


def _grid(values: FloatArray, low: float, high: float) -> FloatArray:
    """Quantiles of values between two ends, to six digits: what is written is what was tried."""
    inner = np.quantile(values, np.linspace(0, 1, KNOBS))
    return np.unique([float(f"{value:.6g}") for value in (low, *inner, high)])


def _sweep(policy: str, data: Validation, table: Table, guarantee: Guarantee | None) -> list[_Point]:
    """A policy at each of its knob's values that could make a difference."""
    if policy == "utility":
        values = multipliers(data.success, normalise(data.tier_cost))
    elif policy == "target_accuracy":
        values = np.unique(np.linspace(table[0][0], table[-1][0], KNOBS).round(6))
    elif policy == "min_success" and guarantee is not None:
        values = np.array([0.0, *(target for target, _ in guarantee)])
    else:  # thresholds on success probabilities
        values = _grid(data.success.ravel(), 0.0, 1.0)
    knob = load(policy).knob
    assert knob is not None
    points = []
    for value in values.tolist():
        knobs = {knob: value, "table": table, "guarantee": guarantee}
        arms = build(policy, knobs, data.tier_cost).choose(data.success, data.cost)
        cost_usd = float(of_chosen(data.cost, arms).mean()) + data.prefill_usd
        points.append(_Point(policy, {knob: value}, arms, data.accuracy(arms), cost_usd))
    return points


def _best_point(points: list[_Point], measure: str, goal: float) -> _Point | None:
    """The least cost that reaches the accuracy, or the most accuracy within the cost; None where nothing does."""
    if measure == "accuracy":
        met = [point for point in points if point.accuracy >= goal - ROUNDING]
        return min(met, key=lambda point: (point.cost_usd, -point.accuracy), default=None)
    met = [point for point in points if point.cost_usd <= goal * (1 + ROUNDING)]
    return min(met, key=lambda point: (-point.accuracy, point.cost_usd), default=None)


def _candidate(point: _Point, data: Validation, best_cost: float, seed: int) -> Candidate:
    measured = of_chosen(data.success_rate, point.arms)
    return Candidate(
        policy=point.policy,
        knobs=point.knobs,
        accuracy=point.accuracy,
        predicted_accuracy=float(of_chosen(data.success, point.arms).mean()),
        measured_accuracy=float(measured.mean()),
        measured_interval=mean_interval(measured, seed=seed),
        cost_usd=point.cost_usd,
        saving_vs_best=1 - point.cost_usd / best_cost if best_cost > 0 else 0.0,
    )


def _simplest(points: list[_Point], data: Validation, measure: str) -> int:
    """The simplest policy whose mean loss is within one standard error of the least."""
    if measure == "accuracy":
        losses = np.stack([of_chosen(data.cost, point.arms) for point in points])  # (candidates, n)
    else:
        losses = -np.stack([of_chosen(data.success, point.arms) for point in points])
    excess = losses - losses[losses.mean(axis=1).argmin()]
    noise = excess.std(axis=1) / math.sqrt(excess.shape[1])
    within: list[int] = np.flatnonzero(excess.mean(axis=1) <= noise).tolist()
    return min(within, key=lambda i: SIMPLEST_FIRST.index(points[i].policy))
