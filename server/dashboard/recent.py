"""The last decisions, and one of them in full."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, func, select

from server.dashboard.reasons import why
from server.dashboard.totals import MAX_TEXT, read_pools
from server.ledger.row import PoolRow
from server.ledger.tables import decisions, outcomes

MAX_PAGE = 100
MAX_PROMPT = 10_000
"""Characters; the page shows no more."""
MAX_OUTCOMES = 20
PAGE = ("id", "request_id", "at", "pool", "arm", "policy", "path", "flags", "success", "cost", "code", "cost_usd",
        "total_ms")  # fmt: skip


@dataclass(frozen=True)
class Line:
    """One decision among others. USD, milliseconds, Unix seconds."""

    id: int
    at: float
    arm: str
    policy: str
    path: str
    flags: list[str]
    code: int
    success_probability: float | None
    """Of the arm."""
    expected_cost_usd: float | None
    cost_usd: float | None
    total_ms: float
    correct: float | None
    """Mean of the outcomes."""


def read_page(connection: Connection, limit: int, before: int | None) -> tuple[list[Line], int | None]:
    """The newest first, and what to ask for as `before` to get those that follow; None where there are none.

    Args:
        before: the id of a decision; None: from the newest on.
    """
    query = select(*(decisions.c[name] for name in PAGE)).order_by(decisions.c.id.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(decisions.c.id < before)
    rows = connection.execute(query).all()
    more, rows = rows[limit:], rows[:limit]
    of = read_pools(connection, sorted({row.pool for row in rows}))
    correct = _correct(connection, [row.request_id for row in rows])
    return [_line(row, of[row.pool], correct.get(row.request_id)) for row in rows], rows[-1].id if more else None


def read_one(connection: Connection, id_: int) -> dict[str, Any] | None:
    """All that is known of a decision; None where it is not there, or no longer."""
    row = connection.execute(select(decisions).where(decisions.c.id == id_)).one_or_none()
    if row is None:
        return None
    pool = read_pools(connection, [row.pool])[row.pool]
    said = connection.execute(
        select(outcomes.c.source, outcomes.c.correct, outcomes.c.at)
        .where(outcomes.c.request_id == row.request_id)
        .order_by(outcomes.c.at)
        .limit(MAX_OUTCOMES)
    ).all()
    success, cost = _numbers(row.success), _numbers(row.cost)
    arms = [
        {
            "name": name,
            "allowed": bool(row.allowed >> i & 1),
            "chosen": i == row.arm,
            "by_policy": i == row.policy_arm,
            "success_probability": success[i],
            "expected_cost_usd": cost[i],
        }
        for i, name in enumerate(pool.arms)
    ]
    line = _line(row, pool, None)
    same = ("policy_arm", "propensity", "percentile", "attempts", "input_tokens", "output_tokens", "probe_usd",
            "routing_ms", "stream")  # fmt: skip
    return {
        **asdict(line),
        **{name: getattr(row, name) for name in same},
        "request_id": row.request_id[:MAX_TEXT],
        "response_id": None if row.response_id is None else row.response_id[:MAX_TEXT],
        "key": None if row.key is None else row.key[:MAX_TEXT],
        "prompt": None if row.prompt is None else row.prompt[:MAX_PROMPT],
        "arms": arms,
        "outcomes": [{"source": one.source[:MAX_TEXT], "correct": one.correct, "at": one.at} for one in said],
        "why": why(line.path, line.policy, line.arm, pool.arms[row.policy_arm], row.propensity, line.flags),
    }


def _line(row: Row[Any], pool: PoolRow, correct: float | None) -> Line:
    return Line(
        id=row.id,
        at=row.at,
        arm=pool.arms[row.arm],
        policy=row.policy[:MAX_TEXT],
        path=row.path[:MAX_TEXT],
        flags=[flag for flag in row.flags[:MAX_TEXT].split(",") if flag],
        code=row.code,
        success_probability=_numbers(row.success)[row.arm],
        expected_cost_usd=_numbers(row.cost)[row.arm],
        cost_usd=row.cost_usd,
        total_ms=row.total_ms,
        correct=correct,
    )


def _numbers(blob: bytes) -> list[float | None]:
    """An array over arms; None where a value is not known."""
    return [value if np.isfinite(value) else None for value in np.frombuffer(blob, dtype="<f4").tolist()]


def _correct(connection: Connection, request_ids: list[str]) -> dict[str, float]:
    query = (
        select(outcomes.c.request_id, func.avg(outcomes.c.correct))
        .where(outcomes.c.request_id.in_(request_ids))
        .group_by(outcomes.c.request_id)
    )
    return {request_id: float(correct) for request_id, correct in connection.execute(query)}
