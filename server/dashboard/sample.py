"""Decisions of a period, so few of them that they are read at once however many there are."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, func, select

from routing_policies.base import BoolArray, FloatArray, PolicyError
from routing_policies.costs import tier_cost
from routing_policies.replay import Recorded, recorded
from server.dashboard.totals import read_pools
from server.ledger.row import PoolRow
from server.ledger.tables import decisions, outcomes

MOST = 4000
"""Decisions; shares among them are known to a percent or so."""
OUT_OF_DISTRIBUTION = "out-of-distribution"
NO_POLICY = frozenset(("pinned", "fallback", "probe-unavailable"))
"""Paths on which no policy chose."""
FIXED = "safe-arm"
"""The path on which every policy would choose alike."""


@dataclass(frozen=True)
class Sample:
    """n decisions, oldest first, evenly spread over the period's."""

    decisions: int
    """About as many are in the period."""
    at: FloatArray
    """Unix seconds, (n,)."""
    percentile: FloatArray
    """See `Prediction.percentile`; NaN where the prompt was not compared, (n,)."""
    odd: BoolArray
    """Flagged out of distribution, (n,)."""
    pool: PoolRow | None
    """The newest; None where there are no decisions."""
    record: Recorded | None
    """The decisions of that pool that can be replayed; None where there are none. As `pika replay` has it."""
    why: str | None
    """Why there are none."""

    @cached_property
    def tier_cost(self) -> tuple[float, ...]:
        """Mean USD of one answer per arm of the pool, (k,)."""
        assert self.pool is not None
        inputs, outputs = np.array(self.pool.mean_tokens).T
        price_in, price_out = np.array(self.pool.prices).T
        return tuple(tier_cost(inputs, outputs, price_in, price_out).tolist())


def read_sample(connection: Connection, since: float, most: int = MOST) -> Sample:
    """
    Args:
        since: Unix seconds.
    """
    first = connection.scalar(select(decisions.c.id).where(decisions.c.at >= since).order_by(decisions.c.at).limit(1))
    last = connection.scalar(select(func.max(decisions.c.id)))
    if first is None or last is None:
        return Sample(0, np.array([]), np.array([]), np.array([], dtype=np.bool_), None, None, None)
    rows = connection.execute(_query(first, last, since, most)).all()
    if not rows:  # the clock went back
        return read_sample(connection, np.inf)
    newest = rows[-1].pool
    pool = read_pools(connection, [newest])[newest]
    record, why = _recorded([row for row in rows if row.pool == newest], len(pool.arms))
    return Sample(
        decisions=max(len(rows), last - first + 1),
        at=np.array([row.at for row in rows]),
        percentile=np.array([np.nan if row.percentile is None else row.percentile for row in rows]),
        odd=np.array([OUT_OF_DISTRIBUTION in row.flags for row in rows]),
        pool=pool,
        record=record,
        why=why,
    )


def _query(first: int, last: int, since: float, most: int) -> Any:
    """Rows by number: they are given out one by one, so that evenly spread numbers are evenly spread requests."""
    columns = ("id", "at", "pool", "arm", "path", "flags", "propensity", "allowed", "success", "cost", "percentile",
               "code", "cost_usd", "probe_usd", "request_id")  # fmt: skip
    taken = select(*(decisions.c[name] for name in columns)).where(decisions.c.at >= since)
    if last - first < most:
        taken = taken.where(decisions.c.id.between(first, last))
    else:
        numbers = np.unique(np.linspace(first, last, most).round().astype(np.int64))
        taken = taken.where(decisions.c.id.in_(numbers.tolist()))
    some = taken.subquery()
    correct = select(func.avg(outcomes.c.correct)).where(outcomes.c.request_id == some.c.request_id).scalar_subquery()
    return select(some, correct.label("correct")).order_by(some.c.id)


def _recorded(rows: list[Row[Any]], k: int) -> tuple[Recorded | None, str | None]:
    """Answered ones that a policy decided on, and why there are none."""
    rows = [row for row in rows if row.code == 200 and row.path not in NO_POLICY and row.arm < k]
    if not rows:
        return None, "None of the decisions in this time was a policy's, and answered."
    bits = np.array([row.allowed for row in rows], dtype=np.int64)
    try:
        record = recorded(
            success=_matrix([row.success for row in rows], k),
            cost=_matrix([row.cost for row in rows], k),
            allowed=(bits[:, None] >> np.arange(k) & 1).astype(np.bool_),  # (n, k)
            arm=np.array([row.arm for row in rows], dtype=np.intp),
            propensity=np.array([row.propensity for row in rows], dtype=np.float64),
            outcome=_column([row.correct for row in rows]),
            paid_usd=_column([row.cost_usd for row in rows]),
            probe_usd=_column([row.probe_usd for row in rows]),
            fixed=np.array([row.path == FIXED for row in rows]),
        )
    except PolicyError as error:
        return None, str(error)
    return record, None


def _matrix(blobs: list[bytes], k: int) -> FloatArray:
    """Arrays over arms, (n, k)."""
    return np.frombuffer(b"".join(blobs), dtype="<f4").reshape(len(blobs), k).astype(np.float64)


def _column(values: list[float | None]) -> FloatArray:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
