"""Reads the decisions of one pool as arrays.

decisions = read_decisions(open_database(url), since=time.time() - 7 * 24 * 3600)
decisions.success                   # (n, k)
"""

import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import URL, Connection, Select, func, select
from sqlalchemy.exc import SQLAlchemyError

from server.ledger.beside import beside
from server.ledger.database import Database, LedgerError, explained
from server.ledger.row import BoolArray, FloatArray, PoolRow
from server.ledger.tables import decisions, outcomes, pools

IntArray = npt.NDArray[np.int64]
TextArray = npt.NDArray[np.object_]

CHUNK_ROWS = 10_000
"""Per query: a longer one would keep SQLite's journal from being cut back while others write."""

HAND_OVER_ROWS = 100_000
"""So many are read in the time that a second process takes to hand over what it read."""


@dataclass(frozen=True)
class StoredPool(PoolRow):
    """A pool as the ledger has it."""

    id: int
    created_at: float


@dataclass(frozen=True)
class Decisions:
    """Decisions among the same arms, oldest first; n of them, k arms."""

    pool: StoredPool
    """The newest; earlier ones may have had other prices, see `pool_id`."""
    id: IntArray
    pool_id: IntArray
    """Whose prices `cost` is by."""
    at: FloatArray
    """Unix seconds."""
    arm: IntArray
    policy_arm: IntArray
    policy: TextArray
    path: TextArray
    propensity: FloatArray
    allowed: BoolArray
    """(n, k)"""
    success: FloatArray
    """(n, k), NaN where unknown."""
    cost: FloatArray
    """(n, k), expected USD."""
    percentile: FloatArray
    """NaN where no statistics say."""
    code: IntArray
    input_tokens: FloatArray
    """NaN, as below, where the upstream sent no usage."""
    output_tokens: FloatArray
    cost_usd: FloatArray
    probe_usd: FloatArray
    outcome: FloatArray
    """0..1, the mean over its sources; NaN where there is none."""

    def __len__(self) -> int:
        return len(self.id)


READ = (
    "id", "at", "arm", "policy_arm", "policy", "path", "propensity", "allowed", "success", "cost", "percentile", "code",
    "input_tokens", "output_tokens", "cost_usd", "probe_usd", "pool",
)  # fmt: skip


def read_pools(database: Database) -> list[StoredPool]:
    """Every pool that decisions were made among, oldest first.

    Raises:
        LedgerError: the database cannot be read.
    """
    with reading(database) as connection:
        return [_pool(row._mapping) for row in connection.execute(select(pools).order_by(pools.c.id))]


def read_decisions(
    database: Database,
    pool: int | None = None,
    since: float | None = None,
    until: float | None = None,
    limit: int | None = None,
    without: Collection[str] = (),
    second_process: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Decisions:
    """Decisions among the arms of one pool, those of other pools with the same arms in the same order included.

    Args:
        pool: its id; None: the newest one's.
        since: Unix seconds, as below; those made at this time or later.
        until: those made before.
        limit: so many of the newest.
        without: of `READ`, what is not needed: left empty, for a million rows are read faster without.
        second_process: of many rows it reads some; see `beside`.
        on_progress: told of rows read, and about how many there are; of a second process nothing.

    Raises:
        LedgerError: the database cannot be read, or there is no such pool.
    """
    found = read_pools(database)
    if not found:
        raise LedgerError(f"the ledger {database} has no decisions yet: let the gateway answer requests first")
    chosen = next((one for one in reversed(found) if pool in (None, one.id)), None)
    if chosen is None:
        raise LedgerError(f"the ledger {database} has no pool {pool}: it has {', '.join(str(one.id) for one in found)}")
    same = [one.id for one in found if list(one.arms) == list(chosen.arms)]
    first, last = id_range(database, same, since, until, limit)
    wanted = _Wanted(tuple(name for name in READ if name not in without or name == "id"), same, since, until)
    k = len(chosen.arms)
    if second_process and last - first > HAND_OVER_ROWS:
        middle = (first + last + HAND_OVER_ROWS) // 2
        with beside(_elsewhere, database.url, wanted, k, middle + 1, last) as later:
            parts = _read(database, wanted, k, first, middle, on_progress)
            parts += later() or _read(database, wanted, k, middle + 1, last, on_progress)
    else:
        parts = _read(database, wanted, k, first, last, on_progress)
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Decisions(pool=chosen, pool_id=columns.pop("pool"), **columns)


@dataclass(frozen=True)
class _Wanted:
    """Which columns of which decisions."""

    names: tuple[str, ...]
    pool_ids: Sequence[int]
    since: float | None
    until: float | None


def _read(
    database: Database, wanted: _Wanted, k: int, first: int, last: int, on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Columns of `Decisions` by id, from `first` to `last`, in parts, of which there is one at least."""
    parts = [_columns([], wanted.names, k) | {"outcome": np.empty(0)}]
    for rows in chunks(database, wanted.names, first, last, wanted.pool_ids, wanted.since, wanted.until):
        part = _columns(rows, wanted.names, k)
        parts.append(part | {"outcome": mean_outcomes(database, part["id"])})
        on_progress(int(rows[-1][0]) - first + 1, last - first + 1)
    return parts


def _elsewhere(url: URL, wanted: _Wanted, k: int, first: int, last: int) -> list[dict[str, Any]]:
    """`_read` in a process of its own."""
    return _read(Database(url), wanted, k, first, last, lambda done, total: None)


@contextmanager
def reading(database: Database) -> Iterator[Connection]:
    """A read transaction.

    Raises:
        LedgerError: the database cannot be read.
    """
    try:
        with database.read() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise LedgerError(explained(error, database)) from error


def chunks(
    database: Database,
    names: Sequence[str],
    first: int,
    last: int,
    pool_ids: Sequence[int] | None = None,
    since: float | None = None,
    until: float | None = None,
) -> Iterator[list[tuple[Any, ...]]]:
    """Rows of `decisions` by id, from `first` to `last`, some ten thousand at a time and none of it empty.

    Args:
        names: columns, of which the first is `id`.

    Raises:
        LedgerError: the database cannot be read.
    """
    after = first - 1
    while after < last:
        query = _narrowed(select(*(decisions.c[name] for name in names)), pool_ids, since, until)
        query = query.where(decisions.c.id > after, decisions.c.id <= last).order_by(decisions.c.id).limit(CHUNK_ROWS)
        with reading(database) as connection:
            cursor = connection.execute(query).cursor
            rows = [] if cursor is None else list(cursor.fetchall())
        if not rows:
            return
        yield rows
        after = rows[-1][0] if len(rows) == CHUNK_ROWS else last


def id_range(
    database: Database, pool_ids: Sequence[int] | None, since: float | None, until: float | None, limit: int | None
) -> tuple[int, int]:
    """First and last id; the first above the last where there is none."""
    with reading(database) as connection:
        ends = _narrowed(select(func.min(decisions.c.id), func.max(decisions.c.id)), None, since, until)
        first, last = connection.execute(ends).one()
        if last is None:
            return 1, 0
        if limit is not None:
            newest = _narrowed(select(decisions.c.id), pool_ids, since, until).order_by(decisions.c.id.desc())
            oldest = connection.execute(newest.offset(max(limit - 1, 0)).limit(1)).scalar()
            first = last + 1 if limit < 1 else first if oldest is None else oldest
        return int(first), int(last)


def _narrowed(
    query: Select[Any], pool_ids: Sequence[int] | None, since: float | None, until: float | None
) -> Select[Any]:
    if pool_ids is not None:
        query = query.where(decisions.c.pool.in_(pool_ids))
    if since is not None:
        query = query.where(decisions.c.at >= since)
    if until is not None:
        query = query.where(decisions.c.at < until)
    return query


def _columns(rows: Sequence[tuple[Any, ...]], names: Sequence[str], k: int) -> dict[str, Any]:
    """Rows of these columns as arrays, those of the others empty."""
    columns: dict[str, Any] = dict.fromkeys(READ, ())
    if rows:
        columns |= zip(names, zip(*rows, strict=True), strict=True)
    for name in ("id", "arm", "policy_arm", "code", "pool"):
        columns[name] = np.array(columns[name], dtype=np.int64)
    for name in ("at", "propensity", "percentile", "input_tokens", "output_tokens", "cost_usd", "probe_usd"):
        columns[name] = np.array(columns[name], dtype=np.float64)
    for name in ("policy", "path"):
        texts = np.empty(len(columns[name]), dtype=np.object_)
        texts[:] = [sys.intern(one) for one in columns[name]]
        columns[name] = texts
    bits = np.array(columns["allowed"], dtype=np.int64)[:, None] >> np.arange(k)  # (n, k)
    columns["allowed"] = (bits & 1).astype(np.bool_)
    for name in ("success", "cost"):
        columns[name] = np.frombuffer(b"".join(columns[name]), "<f4").astype(np.float64).reshape(-1, k)
    return columns


def mean_outcomes(database: Database, ids: IntArray) -> FloatArray:
    """By decision, (n,)."""
    found = np.full(len(ids), np.nan)
    if not len(ids):
        return found
    query = (
        select(decisions.c.id, outcomes.c.correct)
        .select_from(outcomes.join(decisions, outcomes.c.request_id == decisions.c.request_id))
        .where(decisions.c.id >= int(ids[0]), decisions.c.id <= int(ids[-1]))
    )
    with reading(database) as connection:
        cursor = connection.execute(query).cursor
        rows = [] if cursor is None else cursor.fetchall()
    if rows:
        decided, correct = (np.array(values) for values in zip(*rows, strict=True))
        places = np.searchsorted(ids, decided).clip(max=len(ids) - 1)
        there = ids[places] == decided
        count = np.bincount(places[there], minlength=len(ids))
        total = np.bincount(places[there], correct[there], minlength=len(ids))
        np.divide(total, count, out=found, where=count > 0)
    return found


def _pool(row: Any) -> StoredPool:
    names = [field.name for field in fields(StoredPool)]
    return StoredPool(**{name: row[name] for name in names})
