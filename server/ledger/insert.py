"""Decisions into the database: many rows in one statement, for each statement costs requests a turn of the GIL."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, compress
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
    """Write decisions. Of requests that share a key and an id the last one stands: it gave the answer that the client
    has. Where another key's request has the id, they are kept by `own_id`."""
    for each_once in _by_id(rows):
        taken = _upsert(connection, each_once, pool_id, pool)
        if taken:
            own = [replace(row, request_id=own_id(row.request_id, row.key)) for row in taken]
            _upsert(connection, own, pool_id, pool)


def _by_id(rows: Sequence[DecisionRow]) -> Iterator[Sequence[DecisionRow]]:
    """For one statement after the other, for a statement takes each id once."""
    if len({row.request_id for row in rows}) == len(rows):
        yield rows
        return
    waiting = list({(row.request_id, row.key): row for row in rows}.values())
    while waiting:
        first: dict[str, DecisionRow] = {}
        later = [row for row in waiting if first.setdefault(row.request_id, row) is not row]
        yield list(first.values())
        waiting = later


def own_id(request_id: str, key: str | None) -> str:
    """By which a request is kept whose id is another key's already. No client sends a space."""
    return f"{request_id} key={key}" if key is not None else f"{request_id} no key"


def sent_id(stored: str) -> str:
    """The request's id as the client knows it."""
    return stored.partition(" ")[0]


def _upsert(connection: Connection, rows: Sequence[DecisionRow], pool_id: int, pool: PoolRow) -> list[DecisionRow]:
    """Returns those that are not written, for another key has their id."""
    columns = list(zip(*values(rows, pool_id, pool), strict=True))
    # Over None sqlite3 takes longer than over all else, for it asks in vain how to adapt it.
    filled = [column.count(None) < len(rows) for column in columns]
    names = tuple(compress(COLUMNS, filled))
    waiting = list(zip(*compress(columns, filled), strict=True))
    done, taken = 0, []
    for size in CHUNKS:
        while len(waiting) - done >= size:
            flat = tuple(chain.from_iterable(waiting[done : done + size]))
            written = connection.exec_driver_sql(_statement(connection.dialect.name, size, names), flat).rowcount
            if written != size:
                taken += _of_others(connection, rows[done : done + size])
            done += size
    return taken


def _of_others(connection: Connection, rows: Sequence[DecisionRow]) -> list[DecisionRow]:
    ids = [row.request_id for row in rows]
    found = select(decisions.c.request_id, decisions.c.key).where(decisions.c.request_id.in_(ids))
    there = {(id_, key) for id_, key in connection.execute(found)}
    return [row for row in rows if (row.request_id, row.key) not in there]


def stands(connection: Connection, row: DecisionRow, pool_id: int, pool: PoolRow) -> bool:
    """Whether a decision is written already, as it is here; one that is being written at this moment is waited for.
    The caller rolls back: where it is not, it is now."""
    for id_ in (row.request_id, own_id(row.request_id, row.key)):
        (written,) = values([replace(row, request_id=id_)], pool_id, pool)
        if connection.exec_driver_sql(_statement(connection.dialect.name, 1, COLUMNS, replace=False), written).rowcount:
            return False
        there = connection.execute(select(decisions.c.at, decisions.c.key).where(decisions.c.request_id == id_)).one()
        if (there.at, there.key) == (row.at, row.key):
            return True
    return False


def values(rows: Sequence[DecisionRow], pool_id: int, pool: PoolRow) -> Iterator[tuple[Any, ...]]:
    """Of each row, in the order of `COLUMNS`."""
    success, cost = _packed([row.success for row in rows]), _packed([row.cost for row in rows])
    masks = np.array([row.allowed for row in rows]) @ (1 << np.arange(len(pool.arms)))
    for row, *arrays in zip(rows, masks.tolist(), success, cost, strict=True):
        yield _values(row, pool_id, pool, *arrays)


def _packed(arrays: Sequence[FloatArray]) -> Iterator[bytearray]:
    """As float32, all at once: one by one it takes longer than all the rest of a row. In the one kind of bytes that
    sqlite3 takes as it is."""
    packed = np.array(arrays, dtype="<f4")  # (n, k)
    data, width = bytearray(packed.tobytes()), packed.itemsize * packed.shape[1]
    return (data[start : start + width] for start in range(0, len(data), width))


def _values(
    row: DecisionRow, pool_id: int, pool: PoolRow, allowed: int, success: bytearray, cost: bytearray
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


@lru_cache(maxsize=64)
def _statement(dialect: str, rows: int, columns: tuple[str, ...], replace: bool = True) -> str:
    """
    Args:
        columns: that the rows have; all others are null, in place of what may stand there too.
    """
    mark = "%s" if dialect == "postgresql" else "?"
    names = ", ".join(f'"{name}"' for name in columns)
    one = f"({', '.join([mark] * len(columns))})"
    replaced = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS if name != "request_id")
    same = 'decisions."key" IS ' + ("NOT DISTINCT FROM " if dialect == "postgresql" else "") + 'excluded."key"'
    return (
        f"INSERT INTO decisions ({names}) VALUES {', '.join([one] * rows)} "  # noqa: S608  # names of ours alone
        f"ON CONFLICT (request_id) DO {f'UPDATE SET {replaced} WHERE {same}' if replace else 'NOTHING'}"
    )
