"""Where conversations are, for all who share the ledger."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from server.ledger.tables import sessions


@dataclass(frozen=True, slots=True)
class SessionRow:
    session: str
    """Hash."""
    arm: str
    """Name of the arm that the conversation is on."""
    last: str
    """Of the one that answered last."""
    replica: str | None
    trial: str | None
    """Its group, where two policies are compared."""
    turn: int
    """How many answers it held when it was last asked for another."""
    at: float
    """When that was, in Unix seconds."""


def save(connection: Connection, rows: Sequence[SessionRow]) -> None:
    """Each conversation once; what the ledger has of a later time stays."""
    statement = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(sessions)
    new = {column.name: statement.excluded[column.name] for column in sessions.columns if not column.primary_key}
    statement = statement.on_conflict_do_update(
        index_elements=[sessions.c.session], set_=new, where=statement.excluded.at >= sessions.c.at
    )
    # In one order: two writers that lock the same rows the other way round would wait for each other.
    connection.execute(statement, [asdict(row) for row in sorted(rows, key=lambda row: row.session)])


def find(connection: Connection, names: Sequence[str]) -> dict[str, SessionRow]:
    """What is kept of conversations, by hash."""
    found = connection.execute(select(sessions).where(sessions.c.session.in_(names)))
    return {row.session: SessionRow(**row._mapping) for row in found}
