"""Ledgers to write to and read from: SQLite in a folder, PostgreSQL as Debian has it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import event

from server.ledger.database import Database
from server.ledger.row import DecisionRow, PoolRow

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
