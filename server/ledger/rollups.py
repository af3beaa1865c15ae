"""Sums over decisions by minute and hour, pool, arm, policy and path; written in one transaction with them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import NamedTuple

import numpy as np
from sqlalchemy import Connection

from server.ledger.row import DecisionRow, FloatArray, PoolRow

SPANS_S = (60, 3600)
OUT_OF_DISTRIBUTION = "out-of-distribution"


class Key(NamedTuple):
    """What a sum is over; `bucket` begins at that Unix second."""

    span_s: int
    bucket: int
    pool: int
    arm: int
    policy: str
    path: str


@dataclass(slots=True)
class Sums:
    """The columns of `tables.rollups`, which says what each is."""

    requests: int = 0
    errors: int = 0
    odd: int = 0
    scored: int = 0
    expected_correct: float = 0.0
    priced: int = 0
    cost_usd: float = 0.0
    probe_usd: float = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    outcomes: int = 0
    correct: float = 0.0

    def add(self, other: "Sums") -> None:
        for name in COLUMNS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


COLUMNS = tuple(field.name for field in fields(Sums))


def sums_of(rows: Iterable[DecisionRow], pool_id: int, pool: PoolRow) -> dict[Key, Sums]:
    """What these decisions add."""
    minutes: dict[Key, Sums] = {}
    for row in rows:
        key = Key(60, int(row.at // 60) * 60, pool_id, row.arm, row.policy, row.path)
        sums = minutes.get(key)
        if sums is None:
            sums = minutes[key] = Sums()
        sums.requests += 1
        sums.probe_usd += row.probe_usd
        sums.odd += OUT_OF_DISTRIBUTION in row.flags
        if row.code != 200:
            sums.errors += 1
            continue
        success = row.success.item(row.arm)
        if success == success:  # not NaN
            sums.scored += 1
            sums.expected_correct += success
        if row.input_tokens is not None and row.output_tokens is not None:
            sums.priced += 1
            sums.input_tokens += row.input_tokens
            sums.output_tokens += row.output_tokens
            sums.cost_usd += cost_usd(pool, row.arm, row.input_tokens, row.output_tokens)
    every = dict(minutes)
    for key, sums in minutes.items():
        hour = key._replace(span_s=3600, bucket=key.bucket // 3600 * 3600)
        every.setdefault(hour, Sums()).add(sums)
    return every


def outcome_keys(at: float, pool_id: int, arm: int, policy: str, path: str) -> list[Key]:
    """Where an outcome counts: in the buckets of its decision.

    Args:
        at: when the decision was made.
    """
    return [Key(span, int(at // span) * span, pool_id, arm, policy, path) for span in SPANS_S]


def add(connection: Connection, added: Mapping[Key, Sums]) -> None:
    """Add to what stands there."""
    if not added:
        return
    # In one order, so that two writers never wait for each other.
    rows = [(*key, *(getattr(sums, name) for name in COLUMNS)) for key, sums in sorted(added.items())]
    connection.exec_driver_sql(_statement(connection.dialect.name), rows)


@cache
def _statement(dialect: str) -> str:
    """As text: building it with SQLAlchemy costs more than all the rest of a small transaction."""
    names = (*Key._fields, *COLUMNS)
    marks = ", ".join(["%s" if dialect == "postgresql" else "?"] * len(names))
    added = ", ".join(f"{name} = rollups.{name} + excluded.{name}" for name in COLUMNS)
    return (
        f"INSERT INTO rollups ({', '.join(names)}) VALUES ({marks}) "  # noqa: S608  # names of ours alone
        f"ON CONFLICT ({', '.join(Key._fields)}) DO UPDATE SET {added}"
    )


def cost_usd(pool: PoolRow, arm: int, input_tokens: float, output_tokens: float) -> float:
    """USD of one answer of an arm."""
    price_in, price_out = pool.prices[arm]
    return (input_tokens * price_in + output_tokens * price_out) / 1e6


def always_usd(pool: PoolRow, arm: int, sums: Sums) -> FloatArray:
    """What always using each arm would have cost for answers that `arm` gave, (k,): input tokens as they were, output
    tokens the mean of each arm."""
    costs = [
        cost_usd(pool, other, sums.input_tokens, sums.priced * mean_output)
        for other, (_, mean_output) in enumerate(pool.mean_tokens)
    ]
    costs[arm] = sums.cost_usd
    return np.array(costs)
