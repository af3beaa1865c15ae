"""Whether success probabilities are true, and whether prompts are like those that the probes were trained on."""

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, func, select

from probes import measures
from probes.base import FloatArray
from server.dashboard.period import Period
from server.dashboard.sample import Sample
from server.dashboard.shares import Share, share
from server.dashboard.totals import MAX_TEXT
from server.ledger.tables import outcomes
from server.metrics import MIN_PROMPTS, drift_of

MOST = 20_000
"""Outcomes, the latest."""
DRIFT_PROMPTS = 500
MAX_BINS = 10
MIN_PER_BIN = 20
"""Outcomes: fewer tell nothing of a bin."""


@dataclass(frozen=True)
class Bin:
    """Outcomes whose success probabilities are near each other."""

    predicted: float
    """Mean success probability."""
    observed: Share


@dataclass(frozen=True)
class Reliability:
    """One arm's."""

    arm: str
    n: int
    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error, see `probes.measures`."""
    brier: float


def read_reliability(connection: Connection, since: float, most: int = MOST) -> list[Reliability]:
    """Of each arm with outcomes of scored requests, by name."""
    query = (
        select(func.substr(outcomes.c.arm, 1, MAX_TEXT), outcomes.c.success_probability, outcomes.c.correct)
        .where(outcomes.c.at >= since, outcomes.c.success_probability.is_not(None))
        .order_by(outcomes.c.at.desc())
        .limit(most)
    )
    by_arm: dict[str, list[tuple[float, float]]] = {}
    for arm, p, correct in connection.execute(query):
        by_arm.setdefault(arm, []).append((p, correct))
    return [_reliability(arm, *np.array(by_arm[arm]).T) for arm in sorted(by_arm)]


def _reliability(arm: str, p: FloatArray, correct: FloatArray) -> Reliability:
    n = len(p)
    curve = measures.reliability(p, correct, min(MAX_BINS, max(1, n // MIN_PER_BIN)))
    bins = tuple(
        Bin(predicted, share(observed * n * weight, round(n * weight)))
        for predicted, observed, weight in zip(
            curve.predicted.tolist(), curve.observed.tolist(), curve.weight.tolist(), strict=True
        )
    )
    return Reliability(arm, n, bins, curve.ece, measures.brier(p, correct))


@dataclass(frozen=True)
class Drift:
    """Over time, by bucket."""

    bucket_s: int
    times: list[int]
    odd: list[float | None]
    """Share of the scored prompts that are out of distribution."""
    drift: list[float | None]
    """As `pika_drift`, of the `drift_prompts` up to the bucket's end; None where there are too few."""
    n: list[int]
    """Scored prompts in the sample."""
    decisions: int
    sampled: int
    drift_prompts: int


def drift(sample: Sample, period: Period, now: float) -> Drift:
    """Of prompts that were compared with the training prompts."""
    times = period.coarse_buckets(now)
    known = ~np.isnan(sample.percentile)
    percentiles, odd = sample.percentile[known], sample.odd[known]
    ends = np.searchsorted(sample.at[known], [*times[1:], np.inf])
    shares: list[float | None] = []
    moved: list[float | None] = []
    begins = [0, *ends[:-1]]
    for begin, end in zip(begins, ends, strict=True):
        some = end > begin
        shares.append(float(odd[begin:end].mean()) if some else None)
        enough = some and end >= MIN_PROMPTS
        moved.append(drift_of(percentiles[max(0, end - DRIFT_PROMPTS) : end]) if enough else None)
    counts = (ends - begins).tolist()
    return Drift(period.coarse_s, times, shares, moved, counts, sample.decisions, len(sample.at), DRIFT_PROMPTS)
