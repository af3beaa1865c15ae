"""The rows of keys' budgets and of what requests in flight hold of them. Amounts are pico-USD."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from server.keys.file import Period
from server.ledger.tables import budgets, reservations

PERIODS: tuple[Period, ...] = ("day", "month")
Row = tuple[str, Period, int]
"""Key, period, and when it began."""


@dataclass
class Sums:
    """Of one key and period."""

    spent: int
    reserved: int


def taken(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """Claims that are settled: what each held, by id; they hold it no more."""
    if not ids:
        return {}
    gone = delete(reservations).where(reservations.c.id.in_(ids)).returning(reservations.c.id, reservations.c.pico_usd)
    return {row.id: row.pico_usd for row in connection.execute(gone)}


def held(connection: Connection, ids: Sequence[str]) -> dict[str, int]:
    """What claims hold, by id."""
    if not ids:
        return {}
    found = connection.execute(
        select(reservations.c.id, reservations.c.pico_usd).where(reservations.c.id.in_(ids))
    ).all()
    return {row.id: row.pico_usd for row in found}


def locked(connection: Connection, rows: Collection[Row]) -> dict[Row, Sums]:
    """The sums, which nobody else changes until we commit; those of a new day or month begin at zero."""
    found = _locked(connection, rows)
    missing = sorted(set(rows) - set(found))
    if missing:
        dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
        zero = {"spent_pico_usd": 0, "reserved_pico_usd": 0}
        connection.execute(
            dialect.insert(budgets).on_conflict_do_nothing(),
            [{"key": key, "period": period, "start": start, **zero} for key, period, start in missing],
        )
        found |= _locked(connection, missing)
    return found


def _locked(connection: Connection, rows: Collection[Row]) -> dict[Row, Sums]:
    """Those that are there, locked in the same order by all."""
    keys, starts = {key for key, _, _ in rows}, {start for _, _, start in rows}
    found = connection.execute(
        select(budgets)
        .where(budgets.c.key.in_(keys), budgets.c.start.in_(starts))
        .order_by(budgets.c.key, budgets.c.period, budgets.c.start)
        .with_for_update()
    ).all()
    sums = {(one.key, one.period, one.start): Sums(one.spent_pico_usd, one.reserved_pico_usd) for one in found}
    return {row: sums[row] for row in rows if row in sums}


UPDATE = (
    update(budgets)
    .where(
        budgets.c.key == bindparam("of_key"),
        budgets.c.period == bindparam("of_period"),
        budgets.c.start == bindparam("of_start"),
    )
    .values(spent_pico_usd=bindparam("spent"), reserved_pico_usd=bindparam("reserved"))
)
HOLD_MORE = update(reservations).where(reservations.c.id == bindparam("of_id")).values(pico_usd=bindparam("all_of_it"))


def write(connection: Connection, sums: Mapping[Row, Sums]) -> None:
    values: list[dict[str, Any]] = [
        {"of_key": key, "of_period": period, "of_start": start, "spent": one.spent, "reserved": max(one.reserved, 0)}
        for (key, period, start), one in sums.items()
    ]
    if values:
        connection.execute(UPDATE, values)


def hold(connection: Connection, claims: Iterable[tuple[str, str, int]], now: float) -> None:
    """New ones: id, key, amount."""
    values = [{"id": id_, "key": key, "pico_usd": amount, "at": now} for id_, key, amount in claims]
    if values:
        connection.execute(insert(reservations), values)


def hold_more(connection: Connection, claims: Iterable[tuple[str, int]]) -> None:
    """Known ones: id, and the amount in all."""
    values = [{"of_id": id_, "all_of_it": amount} for id_, amount in claims]
    if values:
        connection.execute(HOLD_MORE, values)


def since(connection: Connection, starts: Collection[int]) -> dict[Row, int]:
    """Spent and reserved in the periods that began then."""
    found = connection.execute(select(budgets).where(budgets.c.start.in_(starts))).all()
    return {(one.key, one.period, one.start): one.spent_pico_usd + one.reserved_pico_usd for one in found}


def forget(connection: Connection, before: float) -> None:
    """Earlier days and months, and claims that nobody settled."""
    connection.execute(delete(budgets).where(budgets.c.start < before))
    connection.execute(delete(reservations).where(reservations.c.at < before))


def survives_power_cuts(connection: Any, _: Any) -> None:
    """Of decisions a power cut may take the last; of budgets nothing."""
    connection.execute("PRAGMA synchronous=FULL")
