"""Decisions into the database: many rows in one statement, for each statement costs requests a turn of the GIL."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from server.ledger.rollups import cost_usd
from server.ledger.row import DecisionRow, FloatArray, PoolRow
from server.ledger.tables import decisions, pools

COLUMNS = tuple(column.name for column in decisions.c if column.name != "id")
CHUNKS = (256, 32, 4, 1)
"""Rows per statement: few forms, which the databases need not parse each time."""
RESPONSE_ID = re.compile(rb'"id"\s*:\s*"([A-Za-z0-9._:-]{1,128})"')
MAX_TOKENS = 2**53
"""Whatever an upstream claims."""


def pool_id(connection: Connection, pool: PoolRow, now: float) -> int:
    """The pool's row, made where it is new."""
    description: dict[str, Any] = {
        "arms": list(pool.arms),
        "prices": [list(prices) for prices in pool.prices],
        "mean_tokens": [list(means) for means in pool.mean_tokens],
        "probes": list(pool.probes),
        "policy": dict(pool.policy),
    }
    sha256 = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    statement = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(pools)
    connection.execute(
        statement.values(sha256=sha256, created_at=now, **description).on_conflict_do_nothing(index_elements=["sha256"])
    )
    return int(connection.execute(select(pools.c.id).where(pools.c.sha256 == sha256)).scalar_one())


def insert(connection: Connection, rows: Sequence[DecisionRow], pool_id: int, pool: PoolRow) -> None:
    """Write decisions. Of requests that share an id the last one stands: it gave the answer that the client has."""
    if not rows:
        return
    last = {row.request_id: row for row in rows}
    waiting = [value for row in values(list(last.values()), pool_id, pool) for value in row]
    done, width = 0, len(COLUMNS)
    for size in CHUNKS:
        while len(waiting) - done >= size * width:
            part = waiting[done : done + size * width]
            connection.exec_driver_sql(_statement(connection.dialect.name, size), tuple(part))
            done += size * width


def stands(connection: Connection, row: DecisionRow, pool_id: int, pool: PoolRow) -> bool:
    """Whether a decision is written already, as it is here; one that is being written at this moment is waited for.
    The caller rolls back: where it is not, it is now."""
    (written,) = values([row], pool_id, pool)
    if connection.exec_driver_sql(_statement(connection.dialect.name, 1, replace=False), written).rowcount:
        return False
    at = connection.execute(select(decisions.c.at).where(decisions.c.request_id == row.request_id)).scalar()
    return at == row.at


def values(rows: Sequence[DecisionRow], pool_id: int, pool: PoolRow) -> Iterator[tuple[Any, ...]]:
    """Of each row, in the order of `COLUMNS`."""
    success, cost = _packed([row.success for row in rows]), _packed([row.cost for row in rows])
    masks = np.array([row.allowed for row in rows]) @ (1 << np.arange(len(pool.arms)))
    for row, *arrays in zip(rows, masks.tolist(), success, cost, strict=True):
        yield _values(row, pool_id, pool, *arrays)


def _packed(arrays: Sequence[FloatArray]) -> Iterator[bytes]:
    """As float32, all at once: one by one it takes longer than all the rest of a row."""
    packed = np.array(arrays, dtype="<f4")  # (n, k)
    data, width = packed.tobytes(), packed.itemsize * packed.shape[1]
    return (data[start : start + width] for start in range(0, len(data), width))


def _values(
    row: DecisionRow, pool_id: int, pool: PoolRow, allowed: int, success: bytes, cost: bytes
) -> tuple[Any, ...]:
    inputs, outputs = _tokens(row.input_tokens), _tokens(row.output_tokens)
    return (
        row.request_id,
        response_id(row.beginning, row.request_id),
        row.at,
        pool_id,
        row.arm,
        row.policy_arm,
        row.policy,
        row.path,
        ",".join(row.flags),
        row.propensity,
        allowed,
        success,
        cost,
        row.percentile,
        row.key,
        row.session,
        row.code,
        row.attempts,
        inputs,
        outputs,
        None if inputs is None or outputs is None else cost_usd(pool, row.arm, inputs, outputs),
        row.probe_usd,
        row.routing_s * 1e3,
        row.total_s * 1e3,
        row.stream,
        None if row.prompt is None else storable(row.prompt),
    )


def response_id(beginning: bytes, request_id: str) -> str | None:
    """The id of an answer; None where there is none, or it is vLLM's: the request id behind a prefix."""
    found = RESPONSE_ID.search(beginning)
    if found is None:
        return None
    id_ = found[1].decode()
    return None if id_.endswith(request_id) else id_


def storable(text: str) -> str:
    """As both databases take it: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "").encode("utf-8", "replace").decode()


def _tokens(count: int | None) -> int | None:
    return None if count is None else min(count, MAX_TOKENS)


@lru_cache(maxsize=2 * len(CHUNKS) + 2)
def _statement(dialect: str, rows: int, replace: bool = True) -> str:
    mark = "%s" if dialect == "postgresql" else "?"
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    one = f"({', '.join([mark] * len(COLUMNS))})"
    replaced = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS if name != "request_id")
    return (
        f"INSERT INTO decisions ({names}) VALUES {', '.join([one] * rows)} "  # noqa: S608  # names of ours alone
        f"ON CONFLICT (request_id) DO {f'UPDATE SET {replaced}' if replace else 'NOTHING'}"
    )
