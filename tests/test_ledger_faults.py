"""A gateway whose ledger fails goes on answering, says so in /ready, and writes again by itself."""

import os
import resource
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from server.ledger.database import Database, LedgerError, open_database, parse_url
from server.ledger.reader import read_decisions
from server.ledger.tables import decisions
from server.ledger.writer import Writer
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import PATH, chat, metric
from tests.support.ledger import POOL, Room, decision, limited, read_rollups
from tests.support.postgresql import PostgreSql
from tests.support.processes import until
from tests.support.serve import BODY, Served, served

pytestmark = pytest.mark.slow


@contextmanager
def recorded(folder: Path, url: str | None, *options: str) -> Iterator[Served]:
    """A gateway that is a process, with a ledger at `url`, else where it lies by default."""
    with faults.running(faults.answers) as upstream:
        pool = write_pool(folder, {"small": [upstream.url]}, ledger={} if url is None else {"url": url})
        with served(pool, None, *options) as gateway:
            yield gateway


@dataclass
class Load:
    """Some clients that ask as fast as they are answered, and remember what they were told."""

    base: str
    answered: dict[str, float] = field(default_factory=dict)
    """When, by request id."""
    failed: list[str] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def ask(self, number: int) -> None:
        with httpx.Client(base_url=self.base, timeout=20) as client:
            for i in range(10**6):
                if self._ended.is_set():
                    return
                request_id = f"{number}-{i}"
                try:
                    code = client.post(PATH, json=BODY, headers={"x-request-id": request_id}).status_code
                except httpx.HTTPError:
                    return  # the gateway was killed
                if code == 200:
                    self.answered[request_id] = time.monotonic()
                else:
                    self.failed.append(request_id)

    @contextmanager
    def running(self) -> Iterator["Load"]:
        threads = [threading.Thread(target=self.ask, args=(i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            for thread in threads:
                thread.join(30)


def written(url: str) -> set[str]:
    database = open_database(url)
    try:
        with database.read() as connection:
            return set(connection.execute(select(decisions.c.request_id)).scalars())
    finally:
        database.close()


def problem(client: httpx.Client) -> str:
    """What /ready says of the ledger; it is ready all the same."""
    answer = client.get("/ready")
    assert answer.status_code == 200, answer.text
    return next((one["message"] for one in answer.json()["problems"] if one["part"] == "ledger"), "")


def test_killed_it_loses_no_more_than_the_last_second(ledger_url: str, tmp_path: Path) -> None:
    with recorded(tmp_path, ledger_url) as gateway, Load(str(gateway.client.base_url)).running() as load:
        until(lambda: len(load.answered) > 500, 60, "some hundred are answered")
        killed_at = time.monotonic()
        gateway.process.kill()
        gateway.process.wait()
    assert not load.failed
    found = written(ledger_url)
    lost = {name: killed_at - at for name, at in load.answered.items() if name not in found}
    assert all(age < 1 for age in lost.values()), lost
    assert len(found) > 100


def test_stopped_it_loses_nothing(ledger_url: str, tmp_path: Path) -> None:
    with recorded(tmp_path, ledger_url) as gateway, Load(str(gateway.client.base_url)).running() as load:
        until(lambda: len(load.answered) > 100, 60, "a hundred are answered")
    assert set(load.answered) == written(ledger_url)


def test_two_workers_write_to_one_ledger(ledger_url: str, tmp_path: Path) -> None:
    with (
        recorded(tmp_path, ledger_url, "--workers", "2") as gateway,
        Load(str(gateway.client.base_url)).running() as load,
    ):
        until(lambda: len(load.answered) > 300, 60, "some hundred are answered")
        assert problem(gateway.client) == ""
    assert not load.failed
    assert set(load.answered) == written(ledger_url)
    database = open_database(ledger_url)
    assert sum(one.sums.requests for one in read_rollups(database, 0)[1]) == len(load.answered)
    database.close()


def test_a_reload_takes_another_ledger_and_loses_nothing(tmp_path: Path) -> None:
    with recorded(tmp_path, None) as gateway, Load(str(gateway.client.base_url)).running() as load:
        until(lambda: len(load.answered) > 50, 60, "some are answered")
        pool = tmp_path / "pool.yaml"
        pool.write_text(pool.read_text().replace("ledger:", "ledger:\n  url: sqlite:///other.sqlite"))
        gateway.hang_up("reloaded")
        seen = len(load.answered)
        until(lambda: len(load.answered) > seen + 50, 60, "some more are answered")
    before, after = (written(f"sqlite:///{tmp_path}/{name}") for name in ("pika-ledger.sqlite", "other.sqlite"))
    assert before
    assert after
    assert before | after == set(load.answered)


def remove(file: Path) -> None:
    """With its journal."""
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


def damage_locked(file: Path) -> Callable[[], None]:
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    return holder.close


def damage_garbage(file: Path) -> Callable[[], None]:
    remove(file)
    file.write_bytes(b"garbage " * 4096)
    return file.unlink


def damage_folder(file: Path) -> Callable[[], None]:
    gone = file.parent.rename(file.parent.with_name("gone"))
    return lambda: file.parent.mkdir() if gone else None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_locked, "locked by another process"),
        (damage_garbage, "damaged or no SQLite file"),
        (damage_folder, "there is no folder"),
    ],
)
def test_what_befalls_the_file_is_told_and_outlived(
    tmp_path: Path, damage: Callable[[Path], Callable[[], None]], said: str
) -> None:
    folder = tmp_path / "ledger"
    folder.mkdir()
    url = f"sqlite:///{folder}/ledger.sqlite"
    with recorded(tmp_path, url) as gateway, Load(str(gateway.client.base_url)).running() as load:
        until(lambda: len(load.answered) > 20, 60, "some are answered")
        mend = damage(folder / "ledger.sqlite")
        until(lambda: said in problem(gateway.client), 30, f"/ready says {said!r}")
        seen = len(load.answered)
        until(lambda: len(load.answered) > seen + 20, 30, "it goes on answering")
        mend()
        until(lambda: problem(gateway.client) == "", 30, "it writes again")
        chat(gateway.client, {"x-request-id": "afterwards"})
        lost = metric(gateway.client, "pika_ledger_dropped_total")
    assert not load.failed
    assert lost == 0, "what waited was written once it could be"
    assert "afterwards" in written(url)


@pytest.mark.parametrize("size", [0, 5000])
def test_a_file_cut_off_is_told_or_made_anew(tmp_path: Path, size: int) -> None:
    with recorded(tmp_path, None) as gateway:
        file = tmp_path / "pika-ledger.sqlite"
        chat(gateway.client)
        until(lambda: len(written(f"sqlite:///{file}")) == 1, 30, "the first is written")
        os.truncate(file, size)
        for _ in range(3):
            assert chat(gateway.client).status_code == 200
        remove(file)
        chat(gateway.client, {"x-request-id": "afterwards"})
        until(lambda: file.exists() and problem(gateway.client) == "", 30, "it writes again")
    assert "afterwards" in written(f"sqlite:///{file}")


def test_a_deleted_file_is_made_anew_with_what_comes(tmp_path: Path) -> None:
    with recorded(tmp_path, None) as gateway:
        file = tmp_path / "pika-ledger.sqlite"
        chat(gateway.client, {"x-request-id": "before"})
        until(lambda: "before" in written(f"sqlite:///{file}"), 30, "the first is written")
        remove(file)
        chat(gateway.client, {"x-request-id": "after"})
        until(file.exists, 30, "a new file")
    assert written(f"sqlite:///{file}") == {"after"}
    assert "was deleted or replaced" in "".join(gateway.log)


def test_where_it_is_garbage_from_the_start_requests_are_answered_and_nothing_is_touched(tmp_path: Path) -> None:
    file = tmp_path / "pika-ledger.sqlite"
    file.write_bytes(b"garbage " * 4096)
    with recorded(tmp_path, None) as gateway:
        assert chat(gateway.client).status_code == 200
        assert "move it away" in problem(gateway.client)
    assert file.read_bytes() == b"garbage " * 4096


def test_on_a_full_disk_records_wait_and_are_written_when_there_is_room(tmp_path: Path) -> None:
    """A limit on the size of the process' files stands in for the disk."""
    with recorded(tmp_path, None) as gateway:
        url = f"sqlite:///{tmp_path}/pika-ledger.sqlite"
        pid, unlimited = gateway.process.pid, resource.RLIM_INFINITY
        chat(gateway.client, {"x-request-id": "before"})
        until(lambda: "before" in written(url), 30, "the first is written")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, unlimited))
        assert chat(gateway.client, {"x-request-id": "meanwhile"}).status_code == 200
        until(lambda: problem(gateway.client) != "", 30, "/ready tells")
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        until(lambda: problem(gateway.client) == "", 30, "it writes again")
        assert {"before", "meanwhile"} <= written(url)
        with closing(sqlite3.connect(tmp_path / "pika-ledger.sqlite")) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_ledger_without_room_says_so_and_is_written_again(tmp_path: Path) -> None:
    """A limit on the database's own size: for SQLite that is a full disk."""
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    database = Database(parse_url(url))
    room = limited(database)
    with closing(Writer(database, POOL)) as writer:
        writer.put(decision("before"))
        writer.flush().result(30)
        room.pages = 1
        writer.put(decision("meanwhile", prompt="x" * 65536))
        with pytest.raises(LedgerError, match=r"has no room .*: free the disk, or lower ledger\.max_decisions"):
            writer.flush().result(30)
        room.pages = Room.pages
        until(lambda: writer.problem is None, 30, "it writes again")
    assert written(url) == {"before", "meanwhile"}


def test_postgresql_restarted_under_load_costs_no_request_and_no_record(postgresql: PostgreSql, tmp_path: Path) -> None:
    url = postgresql.make(f"restarted_{os.getpid()}")
    with recorded(tmp_path, url) as gateway, Load(str(gateway.client.base_url)).running() as load:
        until(lambda: len(load.answered) > 50, 60, "some are answered")
        postgresql.stop()
        try:
            until(lambda: "is PostgreSQL up" in problem(gateway.client), 30, "/ready says that it is away")
            seen = len(load.answered)
            until(lambda: len(load.answered) > seen + 50, 30, "it goes on answering")
        finally:
            postgresql.start()
        until(lambda: problem(gateway.client) == "", 30, "it writes again")
        lost = metric(gateway.client, "pika_ledger_dropped_total")
    assert (load.failed, lost) == ([], 0)
    assert set(load.answered) == written(url)
    database = open_database(url)
    assert len(read_decisions(database)) == len(load.answered)
    database.close()


def test_with_postgresql_down_at_the_start_requests_are_answered(postgresql: PostgreSql, tmp_path: Path) -> None:
    url = postgresql.make(f"late_{os.getpid()}")
    postgresql.stop()
    try:
        with recorded(tmp_path, url) as gateway:
            assert chat(gateway.client, {"x-request-id": "early"}).status_code == 200
            assert "is PostgreSQL up" in problem(gateway.client)
            postgresql.start()
            until(lambda: problem(gateway.client) == "", 30, "it writes")
            assert written(url) == {"early"}
    finally:
        if postgresql.process is not None and postgresql.process.poll() is not None:
            postgresql.start()
