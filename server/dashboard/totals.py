"""Money saved, accuracy and the mix of arms over a period, from the ledger's sums."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from sqlalchemy import Connection, Row, func, select

from routing_policies.base import FloatArray
from server.dashboard.money import ArmTotal, Totals, Way
from server.dashboard.period import Period
from server.dashboard.shares import share
from server.ledger.rollups import Sums, always_usd
from server.ledger.row import PoolRow
from server.ledger.tables import pools, rollups

COLUMNS = [field.name for field in fields(Sums)]
NOTHING = Sums()
PINNED = "pinned"
MAX_TEXT = 300
"""Characters."""


def read_pools(connection: Connection, ids: Sequence[int]) -> dict[int, PoolRow]:
    """By id; names cut to what is shown."""
    found = connection.execute(select(pools).where(pools.c.id.in_(ids)))
    return {row.id: _pool(row) for row in found}


def _pool(row: Row[Any]) -> PoolRow:
    prices, mean_tokens = ([(first, second) for first, second in column] for column in (row.prices, row.mean_tokens))
    return PoolRow([name[:MAX_TEXT] for name in row.arms], prices, mean_tokens, row.probes, row.policy)


class Added(NamedTuple):
    """Sums over the requests that went one way in a period."""

    pool: int
    arm: int
    policy: str
    path: str
    sums: Sums


def read_totals(connection: Connection, period: Period, now: float, names: Sequence[str]) -> Totals:
    """
    Args:
        names: the pool's arms, which come first, whether they did anything or not.
    """
    way = (rollups.c.pool, rollups.c.arm, rollups.c.policy, rollups.c.path)
    query = (
        select(*way, *(func.sum(rollups.c[name]).label(name) for name in COLUMNS))
        .where(rollups.c.span_s == period.span_s, rollups.c.bucket >= period.since(now))
        .group_by(*way)
        .order_by(*way)
    )
    rows = [Added(row.pool, row.arm, row.policy, row.path, _sums(row)) for row in connection.execute(query)]
    return add_up(rows, read_pools(connection, sorted({row.pool for row in rows})), names)


def _sums(row: Row[Any]) -> Sums:
    """Whole numbers come as Decimal from PostgreSQL."""
    values = {name: getattr(row, name) for name in COLUMNS}
    return Sums(**{name: type(getattr(NOTHING, name))(value) for name, value in values.items()})


def add_up(rows: Sequence[Added], of: Mapping[int, PoolRow], names: Sequence[str]) -> Totals:
    """
    Args:
        of: the pools by id.
        names: see `read_totals`.
    """
    routed = [row for row in rows if row.path != PINNED]
    order = [*names, *(name for pool in of.values() for name in pool.arms if name not in names)]
    own: dict[str, list[Sums]] = {name: [] for name in dict.fromkeys(order)}
    alone: dict[str, float] = {}
    spent: dict[str, float] = {}
    for pool_id in sorted({row.pool for row in routed}):
        pool, here = of[pool_id], [row for row in routed if row.pool == pool_id]
        usd = sum(row.sums.cost_usd + row.sums.probe_usd for row in here)
        each: FloatArray = np.sum([always_usd(pool, row.arm, row.sums) for row in here], axis=0)
        for name, one in zip(pool.arms, each.tolist(), strict=True):
            alone[name] = alone.get(name, 0.0) + one
            spent[name] = spent.get(name, 0.0) + usd
        for row in here:
            own[pool.arms[row.arm]].append(row.sums)
    every = together(row.sums for row in rows)
    those = together(row.sums for row in routed)
    return Totals(
        requests=every.requests,
        errors=every.errors,
        pinned=every.requests - those.requests,
        spent_usd=every.cost_usd + every.probe_usd,
        probe_usd=every.probe_usd,
        arms=tuple(_arm(name, together(own[name]), alone.get(name), spent.get(name, 0.0)) for name in own),
        expected=share(those.expected_correct, those.scored),
        observed=share(those.correct, those.outcomes),
        ways=tuple(_way(*key, [row.sums for row in rows if (row.policy, row.path) == key]) for key in _ways(rows)),
    )


def together(sums: Iterable[Sums]) -> Sums:
    """Added up."""
    every = Sums()
    for one in sums:
        every.add(one)
    return every


def _ways(rows: Sequence[Added]) -> list[tuple[str, str]]:
    return sorted({(row.policy, row.path) for row in rows})


def _way(policy: str, path: str, sums: Sequence[Sums]) -> Way:
    one = together(sums)
    return Way(
        policy=policy[:MAX_TEXT],
        path=path[:MAX_TEXT],
        requests=one.requests,
        errors=one.errors,
        cost_usd=one.cost_usd / one.priced if one.priced else None,
        expected=share(one.expected_correct, one.scored),
        observed=share(one.correct, one.outcomes),
    )


def _arm(name: str, own: Sums, alone: float | None, spent: float) -> ArmTotal:
    return ArmTotal(
        name=name,
        requests=own.requests,
        errors=own.errors,
        cost_usd=own.cost_usd,
        always_usd=alone,
        saved_usd=None if alone is None else alone - spent,
        saved_share=None if not alone else 1 - spent / alone,
    )


@dataclass(frozen=True)
class Mix:
    """Requests per arm over time."""

    bucket_s: int
    times: list[int]
    """Beginnings of the buckets, Unix seconds."""
    arms: list[str]
    requests: list[list[int]]
    """By arm, by bucket."""


def read_mix(connection: Connection, period: Period, now: float, names: Sequence[str]) -> Mix:
    """
    Args:
        names: the pool's arms, which come first; arms of earlier pools follow where they took requests.
    """
    times = period.buckets(now)
    bucket = (rollups.c.bucket - rollups.c.bucket % period.bucket_s).label("begins")
    query = (
        select(bucket, rollups.c.pool, rollups.c.arm, func.sum(rollups.c.requests).label("requests"))
        .where(rollups.c.span_s == period.span_s, rollups.c.bucket >= times[0])
        .group_by(bucket, rollups.c.pool, rollups.c.arm)
    )
    rows = connection.execute(query).all()
    of = read_pools(connection, sorted({row.pool for row in rows}))
    counts: dict[str, list[int]] = {name: [0] * len(times) for name in names}
    place = {begins: i for i, begins in enumerate(times)}
    for row in rows:
        at = place.get(int(row.begins))  # a clock that went back leaves sums of the future
        if at is not None:
            counts.setdefault(of[row.pool].arms[row.arm], [0] * len(times))[at] += int(row.requests)
    return Mix(period.bucket_s, times, list(counts), list(counts.values()))
