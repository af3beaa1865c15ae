"""Ledgers to write to and read from: SQLite in a folder, PostgreSQL as Debian has it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import event, select

from server.ledger import rollups, tables
from server.ledger.database import Database
from server.ledger.reader import StoredPool, read_pools
from server.ledger.row import DecisionRow, FloatArray, PoolRow

POOL = PoolRow(
    arms=["small", "medium", "large"],
    prices=[(0.1, 0.4), (1.0, 4.0), (10.0, 40.0)],
    mean_tokens=[(10.0, 20.0)] * 3,
    probes=["probe@1", "probe@1", None],
    policy={"name": "utility", "lambda": 0.4},
)


def decision(request_id: str, **fields: Any) -> DecisionRow:
    """A routed request that the middle arm of `POOL` answered just now."""
    row: dict[str, Any] = {
        "at": time.time(),
        "arm": 1,
        "policy_arm": 1,
        "policy": "utility",
        "path": "routed",
        "flags": (),
        "propensity": 1.0,
        "allowed": np.array([True, True, True]),
        "success": np.array([0.5, 0.7, np.nan]),
        "cost": np.array([1e-5, 1e-4, 1e-3]),
        "percentile": 42.0,
        "probe_usd": 1e-7,
        "code": 200,
        "attempts": 1,
        "input_tokens": 11,
        "output_tokens": 7,
        "routing_s": 0.0002,
        "total_s": 0.5,
        "stream": False,
    }
    return DecisionRow(request_id, **(row | fields))


def many(count: int, **fields: Any) -> Sequence[DecisionRow]:
    return [decision(f"{i:032x}", **fields) for i in range(count)]


@dataclass
class Room:
    """What a SQLite file may grow to; it never shrinks for this."""

    pages: int = 1_000_000


def limited(database: Database) -> Room:
    """Set its `pages` to 1, and the file is full."""
    room = Room()

    @event.listens_for(database.engine, "checkout")
    def limit(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={room.pages}")

    return room


@dataclass(frozen=True)
class Rollup:
    """Sums over the decisions of one minute or hour that went one way."""

    key: rollups.Key
    sums: rollups.Sums
    always_usd: FloatArray
    """What always using each of the pool's arms would have cost, (k,)."""


def read_rollups(database: Database, since: float, span_s: int = 3600) -> tuple[dict[int, StoredPool], list[Rollup]]:
    """Sums by minute (kept for two days) or hour, oldest first, and the pools that they name, by id.

    Args:
        since: Unix seconds; the bucket that holds it is the first.
        span_s: 60 or 3600.
    """
    by_id = {one.id: one for one in read_pools(database)}
    table = tables.rollups
    query = select(table).where(table.c.span_s == span_s, table.c.bucket > since - span_s).order_by(table.c.bucket)
    with database.read() as connection:
        rows = [row._mapping for row in connection.execute(query)]
    read = []
    for row in rows:
        key = rollups.Key(**{name: row[name] for name in rollups.Key._fields})
        sums = rollups.Sums(**{name: row[name] for name in rollups.COLUMNS})
        read.append(Rollup(key, sums, rollups.always_usd(by_id[key.pool], key.arm, sums)))
    return by_id, read
