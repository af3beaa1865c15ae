"""What is kept, and for how long. Old rows go in slices, so that nobody waits long for a delete; on PostgreSQL, writers
that delete at the same time take different ones.
"""

from dataclasses import dataclass

from sqlalchemy import Connection, Table, delete, func, select
from sqlalchemy.sql.elements import ColumnElement

from server.ledger.tables import decisions, outcomes, rollups, sessions

SLICE_ROWS = 500
MINUTES_KEPT_S = 48 * 3600
"""Of sums by minute."""
HOURS_KEPT_S = 400 * 24 * 3600
"""Of sums by hour."""
FREE_PAGES = 1024
"""So many are kept for what comes next; the rest is given back to the file system."""


@dataclass(frozen=True)
class Keep:
    """Bounds of the ledger."""

    days: float = 30
    decisions: int = 2_000_000
    session_minutes: float = 60


def newest_at(connection: Connection) -> float | None:
    """When the last decision was made, by the clock of whoever wrote it; None where there is none."""
    last = select(decisions.c.at).order_by(decisions.c.id.desc()).limit(1)
    return connection.execute(last).scalar()


def tidy(connection: Connection, keep: Keep, now: float | None) -> bool:
    """Delete one slice of what is too old or too much; returns whether there may be more.

    Where the clock goes back nothing is deleted that would not have been; `Keep.decisions` bounds the rest.

    Args:
        now: None where the clock is in doubt: nothing is too old then.
    """
    newest = connection.execute(select(func.max(decisions.c.id))).scalar() or 0
    gone = [_delete_decisions(connection, "id", decisions.c.id <= newest - keep.decisions)]
    if now is not None:
        gone += _delete_old(connection, keep, now)
    return max(gone) >= SLICE_ROWS


def _delete_old(connection: Connection, keep: Keep, now: float) -> list[int]:
    """A slice of each table; returns how many rows."""
    cutoff = now - keep.days * 24 * 3600
    return [
        _delete_decisions(connection, "at", decisions.c.at < cutoff),
        _delete(connection, outcomes, "at", outcomes.c.at < cutoff),
        _delete(connection, sessions, "at", sessions.c.at < now - 60 * keep.session_minutes),
        *(
            _delete(connection, rollups, "bucket", (rollups.c.span_s == span_s) & (rollups.c.bucket < now - kept_s))
            for span_s, kept_s in ((60, MINUTES_KEPT_S), (3600, HOURS_KEPT_S))
        ),
    ]


def _delete_decisions(connection: Connection, order: str, condition: ColumnElement[bool]) -> int:
    """The oldest of them, `SLICE_ROWS` at the most, and what was said of them: whoever sends such an id next means
    another answer."""
    found = select(decisions.c.id, decisions.c.request_id).where(condition).order_by(decisions.c[order])
    oldest = connection.execute(found.limit(SLICE_ROWS).with_for_update(skip_locked=True)).all()
    if oldest:
        connection.execute(delete(outcomes).where(outcomes.c.request_id.in_([row.request_id for row in oldest])))
        connection.execute(delete(decisions).where(decisions.c.id.in_([row.id for row in oldest])))
    return len(oldest)


def _delete(connection: Connection, table: Table, order: str, condition: ColumnElement[bool]) -> int:
    """The oldest of them, `SLICE_ROWS` at the most."""
    keys = list(table.primary_key.columns)
    found = select(*keys).where(condition).order_by(table.c[order])
    oldest = connection.execute(found.limit(SLICE_ROWS).with_for_update(skip_locked=True)).all()
    if not oldest:
        return 0
    clause = keys[0].in_([row[0] for row in oldest])
    if len(keys) > 1:
        from sqlalchemy import tuple_

        clause = tuple_(*keys).in_([tuple(row) for row in oldest])
    connection.execute(delete(table).where(clause))
    return len(oldest)


def give_back(connection: Connection) -> bool:
    """Free pages of a SQLite file back to the file system, some at a time; returns whether there are more. Commits.
    PostgreSQL's own vacuum sees to its own."""
    if connection.dialect.name != "sqlite":
        return False
    spare = int(connection.exec_driver_sql("PRAGMA freelist_count").scalar() or 0) - FREE_PAGES
    if spare > 0:  # as a script, which commits and goes on to the last page: a statement would free one
        connection.connection.cursor().executescript(f"PRAGMA incremental_vacuum({min(spare, FREE_PAGES)})")
    return spare > FREE_PAGES
