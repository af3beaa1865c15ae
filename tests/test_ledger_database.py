"""A ledger's database: made by migrations, on SQLite and PostgreSQL alike, by several processes at once."""

import stat
import sys
import threading
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import func, inspect, select, text

from server.ledger.database import HEAD, MIGRATIONS, Database, LedgerError, looked_at, open_database, parse_url
from server.ledger.tables import decisions, metadata


def test_migrations_lead_to_the_tables_that_the_code_knows(ledger_url: str) -> None:
    database = open_database(ledger_url)
    with database.read() as connection:
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD
    assert ScriptDirectory(str(MIGRATIONS)).get_current_head() == HEAD
    database.close()


def test_many_open_a_new_ledger_at_once(ledger_url: str) -> None:
    failures: list[Exception] = []

    def open_one() -> None:
        try:
            open_database(ledger_url).close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_file_is_for_its_owner_alone_and_is_read_while_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    database = open_database(f"sqlite:///{file}")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with database.write() as _, database.read() as reader:
        assert reader.execute(select(func.count()).select_from(decisions)).scalar() == 0
        assert reader.execute(text("PRAGMA journal_mode")).scalar() == "wal"
    database.close()


def test_a_ledger_of_a_newer_version_is_left_alone(ledger_url: str) -> None:
    database = open_database(ledger_url)
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LedgerError, match=r"newer version of PIKA \(revision 9999\)"):
        open_database(ledger_url)
    database.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://a@b/c", "must be sqlite:///FILE or postgresql://"),
        ("nonsense", "must be sqlite:///FILE or postgresql://"),
        ("sqlite://", "must name a file"),
        ("sqlite:///:memory:", "must name a file"),
        ("sqlite:////no/such/folder/ledger.sqlite", "there is no folder /no/such/folder; make it"),
        ("postgresql://pika:hunter2@127.0.0.1:1/x", "is PostgreSQL up"),
    ],
)
def test_what_cannot_be_opened_is_told_with_the_fix_and_without_the_password(url: str, said: str) -> None:
    with pytest.raises(LedgerError, match=said) as raised:
        open_database(url)
    assert "hunter2" not in str(raised.value)


def test_a_file_that_is_no_database_is_told_and_not_touched(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(LedgerError, match=r"no SQLite file .* move it away"):
        open_database(f"sqlite:///{file}")
    assert file.read_bytes() == b"no database" * 1000


def test_a_deleted_file_is_noticed(tmp_path: Path) -> None:
    database = Database(parse_url(f"sqlite:///{tmp_path}/ledger.sqlite"))
    database.migrate()
    assert not database.vanished()
    (tmp_path / "ledger.sqlite").unlink()
    assert database.vanished()
    database.close()


def test_without_its_driver_postgresql_is_refused_with_the_command_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(LedgerError, match=r"pip install 'pika-router\[postgres\]'"):
        parse_url("postgresql://pika@localhost/pika")


def test_looking_at_a_ledger_makes_and_changes_nothing(ledger_url: str, tmp_path: Path) -> None:
    assert looked_at(ledger_url)[0]
    assert list(tmp_path.iterdir()) == []
    open_database(ledger_url).close()
    good, said = looked_at(ledger_url)
    assert good
    assert said.endswith("ready")
    assert looked_at("sqlite:////no/such/folder/x") == (
        False,
        "there is no folder /no/such/folder; make it, or set ledger.url",
    )
    (tmp_path / "garbage").write_bytes(b"garbage " * 1000)
    good, said = looked_at(f"sqlite:///{tmp_path}/garbage")
    assert not good
    assert "move it away" in said
