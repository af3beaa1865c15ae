"""Money saved, accuracy and the mix of arms over a period, from the ledger's sums."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, func, select

from routing_policies.base import FloatArray
from server.dashboard.money import ArmTotal, Totals
from server.dashboard.period import Period
from server.dashboard.shares import share
from server.ledger.rollups import Sums, always_usd
from server.ledger.row import PoolRow
from server.ledger.tables import pools, rollups

COLUMNS = [field.name for field in fields(Sums)]


def read_pools(connection: Connection, ids: Sequence[int]) -> dict[int, PoolRow]:
    """By id."""
    found = connection.execute(select(pools).where(pools.c.id.in_(ids)))
    return {row.id: _pool(row) for row in found}


def _pool(row: Row[Any]) -> PoolRow:
    prices, mean_tokens = ([(first, second) for first, second in column] for column in (row.prices, row.mean_tokens))
    return PoolRow(row.arms, prices, mean_tokens, row.probes, row.policy)


def read_totals(connection: Connection, period: Period, now: float, names: Sequence[str]) -> Totals:
    """
    Args:
        names: the pool's arms, which come first, whether they did anything or not.
    """
    query = (
        select(rollups.c.pool, rollups.c.arm, *(func.sum(rollups.c[name]).label(name) for name in COLUMNS))
        .where(rollups.c.span_s == period.span_s, rollups.c.bucket >= period.since(now))
        .group_by(rollups.c.pool, rollups.c.arm)
    )
    rows = connection.execute(query).all()
    found = read_pools(connection, sorted({row.pool for row in rows}))
    sums = [(row.pool, row.arm, Sums(*(_number(row, name) for name in COLUMNS))) for row in rows]
    return add_up(sums, found, names)


def _number(row: Any, name: str) -> Any:
    value = getattr(row, name)
    return float(value) if name.endswith("usd") or name.endswith("correct") else int(value)


def add_up(sums: Sequence[tuple[int, int, Sums]], of: Mapping[int, PoolRow], names: Sequence[str]) -> Totals:
    """
    Args:
        sums: (pool, arm, what it did).
        of: the pools by id.
    """
    order = [*names, *(name for pool in of.values() for name in pool.arms if name not in names)]
    own: dict[str, list[Sums]] = {name: [] for name in dict.fromkeys(order)}
    alone: dict[str, float] = {}
    routed: dict[str, float] = {}
    for pool_id in of:
        pool, mine = of[pool_id], [(arm, one) for id_, arm, one in sums if id_ == pool_id]
        spent = sum(one.cost_usd + one.probe_usd for _, one in mine)
        each: FloatArray = np.sum([always_usd(pool, arm, one) for arm, one in mine], axis=0)
        for name, usd in zip(pool.arms, each.tolist(), strict=True):
            alone[name] = alone.get(name, 0.0) + usd
            routed[name] = routed.get(name, 0.0) + spent
        for arm, one in mine:
            own[pool.arms[arm]].append(one)
    every = [one for _, _, one in sums]
    probe_usd = sum(one.probe_usd for one in every)
    return Totals(
        arms=tuple(_arm(name, own[name], alone.get(name), routed.get(name, 0.0)) for name in own),
        requests=sum(one.requests for one in every),
        errors=sum(one.errors for one in every),
        spent_usd=sum(one.cost_usd for one in every) + probe_usd,
        probe_usd=probe_usd,
        expected=share(sum(one.expected_correct for one in every), sum(one.scored for one in every)),
        observed=share(sum(one.correct for one in every), sum(one.outcomes for one in every)),
    )


def _arm(name: str, own: Sequence[Sums], alone: float | None, routed: float) -> ArmTotal:
    return ArmTotal(
        name=name,
        requests=sum(one.requests for one in own),
        errors=sum(one.errors for one in own),
        cost_usd=sum(one.cost_usd for one in own),
        always_usd=alone,
        saved_usd=None if alone is None else alone - routed,
        saved_share=None if not alone else 1 - routed / alone,
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
