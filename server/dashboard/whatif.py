"""What other values of lambda would have done with recent requests, and what each arm alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from routing_policies.base import build
from routing_policies.off_policy import Estimate
from routing_policies.replay import Recorded, Replayed, always, as_it_was, replay
from server.dashboard.sample import Sample

LAMBDAS = (0.0, *np.geomspace(0.001, 30, 24).tolist())
"""Those that the frontier is drawn through."""


@dataclass(frozen=True)
class Point:
    """One way to choose. USD of one answer."""

    what: str
    """lambda, `always`, or `as it was`."""
    lam: float | None
    arm: str | None
    cost_usd: float
    accuracy: float
    """By success probabilities."""
    low: float
    high: float
    outcomes: Estimate | None
    """The accuracy by outcomes, where routing was partly left to chance; see `routing_policies.replay`."""
    mix: dict[str, float]
    changed: float
    """Share of the requests that would have gone elsewhere."""
    n: int
    """Requests."""


@dataclass(frozen=True)
class Frontier:
    """Of the newest pool's decisions in a period."""

    n: int
    left_out: int
    why: str | None
    """Why there is nothing."""
    points: tuple[Point, ...]
    today: Point | None
    always: tuple[Point, ...]


def frontier(sample: Sample) -> Frontier:
    """See `Frontier`."""
    record, pool = sample.record, sample.pool
    if record is None or pool is None:
        return Frontier(0, 0, sample.why, (), None, ())
    each = [always(record, arm) for arm in range(len(pool.arms))]
    return Frontier(
        n=len(record.arm),
        left_out=record.left_out,
        why=None,
        points=tuple(_by_lambda(sample, record, lam) for lam in LAMBDAS),
        today=_point(as_it_was(record), pool.arms, "as it was"),
        always=tuple(_point(one, pool.arms, "always", arm=pool.arms[i]) for i, one in enumerate(each)),
    )


def what_if(sample: Sample, lam: float) -> Point | None:
    """The policy utility with this lambda; None where there is nothing to replay.

    Raises:
        PolicyError: lambda is out of range.
    """
    return None if sample.record is None else _by_lambda(sample, sample.record, lam)


def best_single(sample: Sample) -> Point | None:
    """The arm alone that is expected to be right most often; None where there is nothing to replay."""
    if sample.record is None or sample.pool is None:
        return None
    best, arms = sample.record.best, sample.pool.arms
    return _point(always(sample.record, best), arms, "always", arm=arms[best])


def _by_lambda(sample: Sample, record: Recorded, lam: float) -> Point:
    assert sample.pool is not None
    policy = build("utility", {"lambda": lam}, sample.tier_cost)
    return _point(replay(record, policy), sample.pool.arms, "lambda", lam=lam)


def _point(result: Replayed, arms: Sequence[str], what: str, lam: float | None = None, arm: str | None = None) -> Point:
    accuracy = result.expected_accuracy
    return Point(
        what=what,
        lam=lam,
        arm=arm,
        cost_usd=result.cost_usd,
        accuracy=accuracy.value,
        low=accuracy.low,
        high=accuracy.high,
        outcomes=result.from_outcomes.inverse_propensity,
        mix=dict(zip(arms, result.mix, strict=True)),
        changed=result.changed,
        n=result.requests,
    )
