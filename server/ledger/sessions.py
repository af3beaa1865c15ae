"""Where conversations are, for all who share the ledger."""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from server.ledger.row import AHEAD_S, SessionRow
from server.ledger.tables import sessions


def save(connection: Connection, rows: Sequence[SessionRow]) -> None:
    """Each conversation once. What the ledger has of a later time stays, unless it is of a clock that was wrong."""
    statement = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(sessions)
    new = {column.name: statement.excluded[column.name] for column in sessions.columns if not column.primary_key}
    at = statement.excluded.at
    statement = statement.on_conflict_do_update(
        index_elements=[sessions.c.session],
        set_=new,
        where=(at >= sessions.c.at) | (at < sessions.c.at - AHEAD_S),
    )
    # In one order: two writers that lock the same rows the other way round would wait for each other.
    connection.execute(statement, [asdict(row) for row in sorted(rows, key=lambda row: row.session)])


def find(connection: Connection, names: Sequence[str]) -> dict[str, SessionRow]:
    """What is kept of conversations, by hash."""
    found = connection.execute(select(sessions).where(sessions.c.session.in_(names)))
    return {row.session: SessionRow(**row._mapping) for row in found}
