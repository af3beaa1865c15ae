"""The ledger's database: SQLite (a file, WAL) or PostgreSQL, its schema brought up to date.

database = open_database("sqlite:////var/lib/pika/pika-ledger.sqlite")
with database.read() as connection:
    connection.execute(select(tables.decisions).limit(10))
"""

import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

logger = logging.getLogger(__name__)

HEAD = "0001"
"""The newest revision in `migrations/versions`; a test holds that it is."""
MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_S = 5
"""So long is waited for whoever else writes to the same SQLite file."""
WAL_BYTES = 64 * 1024 * 1024
"""The journal is cut back to this size once it has been larger."""
ADVISORY_LOCK = 0x70696B61
"""Held on PostgreSQL while the schema changes."""
POSTGRESQL = {
    "connect_timeout": 5,
    "tcp_user_timeout": 15_000,
    "application_name": "pika",
    "options": "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
}
"""A server that is gone without a word is noticed; its locks too."""
WRITE = {"pika_write": True}


class LedgerError(Exception):
    """The ledger cannot be used; the message names the fix."""


class Database:
    """An engine whose connections are set up as the ledger needs them. Safe to share between threads.

    Args:
        url: as `parse_url` returns it.
    """

    def __init__(self, url: URL) -> None:
        self.url = url
        self.file = Path(url.database or "") if url.get_backend_name() == "sqlite" else None
        """None on PostgreSQL."""
        self.engine = _sqlite_engine(url) if self.file is not None else _postgresql_engine(url)
        self._identity: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Without a password, which may stand behind the question mark too."""
        return str(self.file) if self.file is not None else self.url.set(query={}).render_as_string(hide_password=True)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database and changes nothing."""
        with self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that is committed unless an exception ends it; on SQLite one at a time."""
        with self.engine.connect() as connection:
            connection = connection.execution_options(**WRITE)
            with connection.begin():
                yield connection

    def migrate(self) -> None:
        """Make the file and the tables, or bring them up to date; several processes may do so at once.

        Raises:
            LedgerError: the tables are of a newer version of ours.
            SQLAlchemyError: the database cannot be used.
        """
        if self.file is not None:
            _prepare_file(self.file)
            self._identity = _identity(self.file)
        with self.read() as connection:  # nothing waits for whoever writes now
            if _revision(connection) == HEAD:
                return
        with self.write() as connection:
            if self.file is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
            found = _revision(connection)
            if found == HEAD:
                return
            if found is not None and found not in _known_revisions():
                raise LedgerError(
                    f"the ledger {self} is of a newer version of PIKA (revision {found}): use that version, or another "
                    "database"
                )
            _upgrade(connection)
        logger.info("ledger %s: tables of revision %s", self, HEAD)

    def vanished(self) -> bool:
        """Whether the SQLite file that was opened no longer stands there: it was deleted or replaced."""
        return self.file is not None and self._identity is not None and _identity(self.file) != self._identity

    def close(self) -> None:
        """Close all connections; the next use opens new ones."""
        self.engine.dispose()


def open_database(url: str) -> Database:
    """A database that is there, with its tables brought up to date; a SQLite file is made where there is none.

    Args:
        url: `sqlite:///relative.sqlite`, `sqlite:////absolute.sqlite` or `postgresql://user@host/name`.

    Raises:
        LedgerError: it cannot be used; names the fix.
    """
    database = Database(parse_url(url))
    try:
        database.migrate()
    except (SQLAlchemyError, OSError) as error:
        database.close()
        raise LedgerError(explained(error, database)) from error
    except BaseException:
        database.close()
        raise
    return database


def looked_at(url: str) -> tuple[bool, str]:
    """Whether a gateway could write to this database, and what there is to say; nothing is made or changed.

    Raises:
        LedgerError: it is no URL of a database that we know.
    """
    database = Database(parse_url(url))
    file = database.file
    if file is not None and not file.exists():
        if not file.parent.is_dir():
            return False, f"there is no folder {file.parent}; make it, or set ledger.url"
        return os.access(file.parent, os.W_OK), f"{file} is made by the first start, if its folder may be written to"
    try:
        with database.read() as connection:
            found = _revision(connection)
    except (SQLAlchemyError, OSError) as error:
        return False, explained(error, database)
    finally:
        database.close()
    if found is not None and found not in _known_revisions():
        return False, f"{database} is of a newer version of PIKA (revision {found})"
    return True, f"{database}, " + ("its tables are made by the first start" if found is None else "ready")


def parse_url(text: str) -> URL:
    """
    Raises:
        LedgerError: it is no URL of a database that we know, or its driver is not installed.
    """
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        backend = ""
    if backend not in ("sqlite", "postgresql"):
        raise LedgerError("the ledger's URL must be sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    if backend == "sqlite":
        if url.database in (None, "", ":memory:") or (url.database or "").startswith("file:"):
            raise LedgerError("the ledger's URL must name a file: sqlite:///FILE")
        return url.set(drivername="sqlite+pysqlite")
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        raise LedgerError("a ledger on PostgreSQL needs psycopg: pip install 'pika-router[postgres]'") from error
    return url.set(drivername="postgresql+psycopg")


def fault(error: Exception, database: Database) -> str | None:
    """What is wrong with the database, and what to do; None where the error is a bug of ours."""
    if isinstance(error, LedgerError):
        return str(error)
    return explained(error, database) if isinstance(error, SQLAlchemyError | OSError) else None


def explained(error: Exception, database: Database) -> str:
    """What is wrong with the database, and what to do; never a statement or its values."""
    original = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    said = " ".join(str(original).split())[:300]
    where = f"the ledger {database}"
    file = database.file
    if file is None:
        return f"{where} cannot be used: {said}; is PostgreSQL up, and may this user log in and make tables?"
    if not file.parent.is_dir():
        return f"{where}: there is no folder {file.parent}; make it, or set ledger.url"
    if "not a database" in said or "malformed" in said:
        return f"{where} is damaged or no SQLite file ({said}): move it away, and a new one is made"
    if "locked" in said or "busy" in said:
        return f"{where} is locked by another process ({said}): end what holds it"
    if "full" in said or "too big" in said or "too large" in said:
        return f"{where} has no room ({said}): free the disk, or lower ledger.max_decisions"
    return f"{where} cannot be used: {said}; check its folder's permissions and disk"


def _sqlite_engine(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"check_same_thread": False, "timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: Any) -> None:
        connection.isolation_level = None  # we say where transactions begin
        for pragma in ("foreign_keys=ON", "synchronous=NORMAL", f"journal_size_limit={WAL_BYTES}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # Who writes says so at once: one that reads first could not wait for another who writes.
        writes = connection.get_execution_options().get("pika_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _postgresql_engine(url: URL) -> Engine:
    own = {name: value for name, value in POSTGRESQL.items() if name not in url.query}
    return create_engine(url, connect_args=own, pool_pre_ping=True, pool_recycle=1800)


def _prepare_file(file: Path) -> None:
    """A new file is for its owner alone, and has the modes that a file keeps: WAL, and giving pages back."""
    if not file.exists():
        with suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    if file.stat().st_size:
        return
    deadline = time.monotonic() + BUSY_S
    with closing(sqlite3.connect(file, timeout=BUSY_S)) as connection:
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        while True:
            try:
                connection.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:  # another process does the same now; SQLite does not wait by itself here
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _known_revisions() -> set[str]:
    return {file.name.partition("_")[0] for file in (MIGRATIONS / "versions").glob("[0-9]*.py")}


def _upgrade(connection: Connection) -> None:
    from alembic import command  # half a second that a start seldom needs
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
