"""Budgets while their file is locked, has no room, or is gone: requests are refused, and nothing is spent twice."""

import asyncio
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from server.errors import BudgetError, BudgetUnavailableError
from server.keys import budget as budget_module
from server.keys.budget import Budgets
from server.keys.known import Key
from server.keys.spending import PICO
from server.ledger import database as database_module
from server.ledger.database import Database, open_database, parse_url
from server.ledger.tables import budgets, reservations
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import chat, metric
from tests.support.keys import new_key
from tests.support.ledger import Room, limited
from tests.support.processes import until
from tests.support.serve import Served, served

CENT = PICO // 100
ANSWER = 3_900_000
"""Pico-USD of each answer of the gateway's only arm: 11 tokens at $0.1 and 7 at $0.4 per million."""
TEAM = Key("team", b"", b"", None, None, {}, None, None, {"day": 0.1})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "pika-ledger.sqlite"


@asynccontextmanager
async def opened(file: Path) -> AsyncIterator[Budgets]:
    kept = Budgets(Database(parse_url(f"sqlite:///{file}")))
    try:
        yield kept
    finally:
        await asyncio.to_thread(kept.close)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """By another connection, so that nobody else can write."""
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield


def today(file: Path) -> tuple[int, int, int]:
    """Pico-USD spent and reserved, and how many reservations nobody has settled."""
    with closing(open_database(f"sqlite:///{file}")) as database, database.read() as connection:
        [row] = connection.execute(select(budgets).where(budgets.c.period == "day")).all()
        unsettled = len(connection.execute(select(reservations)).all())
    return row.spent_pico_usd, row.reserved_pico_usd, unsettled


async def granted(kept: Budgets, times: int = 20) -> int:
    """How many cents, one by one."""
    went = await asyncio.gather(*(kept.reserve(kept.claim(TEAM), CENT) for _ in range(times)), return_exceptions=True)
    assert all(one is None or isinstance(one, BudgetError) for one in went), went
    return sum(one is None for one in went)


def remove(file: Path) -> None:
    """With its journal."""
    for suffix in ("", "-wal", "-shm"):
        file.with_name(file.name + suffix).unlink(missing_ok=True)


async def test_locked_for_longer_than_sqlite_waits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_S", 0.3)
    async with opened(file) as kept:
        assert await granted(kept, 1) == 1
        with locked(file):
            refused = await asyncio.gather(
                *(kept.reserve(kept.claim(TEAM), CENT) for _ in range(20)), return_exceptions=True
            )
            assert all(isinstance(one, BudgetUnavailableError) for one in refused), refused
            assert kept.problem is not None
            assert "locked by another process" in kept.problem
        assert await granted(kept) == 9
        assert kept.problem is None
    assert today(file) == (0, 10 * CENT, 10)


async def test_locked_for_longer_than_a_request_waits(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reserved after all, once nobody waits for it any more, is given back."""
    monkeypatch.setattr(budget_module, "WAIT_S", 0.3)
    async with opened(file) as kept:
        assert await granted(kept, 1) == 1
        claims = [kept.claim(TEAM) for _ in range(5)]
        with locked(file):
            refused = await asyncio.gather(*(kept.reserve(claim, CENT) for claim in claims), return_exceptions=True)
            assert all(isinstance(one, BudgetUnavailableError) for one in refused), refused
        for claim in claims:
            kept.settle(claim, 0)  # as every request that ends
        monkeypatch.setattr(budget_module, "WAIT_S", 20)
        assert await granted(kept) == 9
    assert today(file) == (0, 10 * CENT, 10)


async def test_a_settlement_waits_for_the_lock_and_is_not_lost(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "BUSY_S", 0.1)
    async with opened(file) as kept:
        claim = kept.claim(TEAM)
        await kept.reserve(claim, 10 * CENT)
        with locked(file):
            kept.settle(claim, 3 * CENT)
            with pytest.raises(BudgetUnavailableError):
                await kept.reserve(kept.claim(TEAM), CENT)
        assert await granted(kept) == 7
    assert today(file) == (3 * CENT, 7 * CENT, 7)


async def test_without_room_nothing_is_granted_until_there_is(file: Path) -> None:
    """A limit on the database's own size: for SQLite that is a full disk."""
    database = Database(parse_url(f"sqlite:///{file}"))
    room, kept = limited(database), Budgets(database)
    try:
        await kept.reserve(kept.claim(TEAM), 1)
        room.pages = 1
        went = await asyncio.gather(*(kept.reserve(kept.claim(TEAM), 1) for _ in range(500)), return_exceptions=True)
        assert {type(one) for one in went if one is not None} == {BudgetUnavailableError}
        assert kept.problem is not None
        assert "has no room" in kept.problem
        room.pages = Room.pages
        assert await granted(kept) == 9, "the tenth cent is begun"
        assert kept.problem is None
    finally:
        await asyncio.to_thread(kept.close)
    begun = 1 + went.count(None)
    assert today(file) == (0, begun + 9 * CENT, begun + 9)


def moved_away(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))


def put_back(file: Path) -> None:
    file.with_name("elsewhere").rename(file)


def replaced_by_a_new_one(file: Path) -> None:
    remove(file)
    open_database(f"sqlite:///{file}").close()


@pytest.mark.parametrize("goes", [remove, moved_away, replaced_by_a_new_one])
async def test_what_was_spent_is_not_forgotten_with_its_file(file: Path, goes: Callable[[Path], None]) -> None:
    async with opened(file) as kept:
        assert await granted(kept) == 10
        goes(file)
        for _ in range(3):
            with pytest.raises(BudgetUnavailableError):
                await kept.reserve(kept.claim(TEAM), CENT)
            open_database(f"sqlite:///{file}").close()  # as the ledger's writer makes it
        assert kept.problem is not None
        assert "was deleted or replaced" in kept.problem
        assert "begin anew" in kept.problem
        assert kept.known([TEAM]) == {}
    async with opened(file) as kept:
        assert await granted(kept) == 10, "whoever starts anew has a new file"


async def test_a_file_that_is_put_back_is_used_again(file: Path) -> None:
    async with opened(file) as kept:
        assert await granted(kept, 4) == 4
        moved_away(file)
        with pytest.raises(BudgetUnavailableError):
            await kept.reserve(kept.claim(TEAM), CENT)
        put_back(file)
        assert await granted(kept) == 6
        assert kept.problem is None
    assert today(file) == (0, 10 * CENT, 10)


# The gateway


@contextmanager
def budgeted(folder: Path) -> Iterator[tuple[Served, dict[str, str], faults.Upstream]]:
    """One that is a process, the headers of a key with a budget for many requests, and its upstream."""
    headers = new_key(folder / "keys.yaml", "team", usd_per_day=1)
    with faults.running(faults.answers) as upstream:
        config = write_pool(folder, {"small": [upstream.url]}, keys={"file": "keys.yaml"}, ledger={})
        with served(config) as gateway:
            assert chat(gateway.client, headers).status_code == 200
            yield gateway, headers, upstream


def refused(answer: httpx.Response) -> bool:
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "budget_unavailable")
    assert answer.headers["retry-after"] == "1"
    return True


def test_while_the_file_is_locked_nothing_is_sent(tmp_path: Path, file: Path) -> None:
    with budgeted(tmp_path) as (gateway, headers, upstream):
        with locked(file):
            answers: list[httpx.Response] = []
            asking = [threading.Thread(target=lambda: answers.append(chat(gateway.client, headers))) for _ in range(5)]
            for thread in asking:
                thread.start()
            for thread in asking:
                thread.join(30)
            assert [refused(answer) for answer in answers] == [True] * 5
            assert len(upstream.requests) == 1
        until(lambda: chat(gateway.client, headers).status_code == 200, 20, "it is granted again")
    assert today(file) == (len(upstream.requests) * ANSWER, 0, 0)


def test_on_a_full_disk_nothing_is_sent(tmp_path: Path, file: Path) -> None:
    """A limit on the size of the process' files stands in for the disk."""
    with budgeted(tmp_path) as (gateway, headers, upstream):
        pid, unlimited = gateway.process.pid, resource.RLIM_INFINITY
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, unlimited))
        sent = len(upstream.requests)
        assert refused(chat(gateway.client, headers))
        assert len(upstream.requests) == sent
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (unlimited, unlimited))
        until(lambda: chat(gateway.client, headers).status_code == 200, 20, "it is granted again")
    assert today(file) == (len(upstream.requests) * ANSWER, 0, 0)


def test_a_deleted_file_stops_keys_with_budgets_until_a_reload(tmp_path: Path, file: Path) -> None:
    free = new_key(tmp_path / "keys.yaml", "free")
    with budgeted(tmp_path) as (gateway, headers, upstream):
        until(lambda: metric(gateway.client, "pika_budget_spent_ratio") > 0, 20, "something is spent")
        remove(file)
        sent = len(upstream.requests)
        assert refused(chat(gateway.client, headers))
        assert len(upstream.requests) == sent
        assert chat(gateway.client, free).status_code == 200
        until(file.exists, 20, "decisions go to a new file")
        assert refused(chat(gateway.client, headers)), "it says nothing of what was spent"
        problems = {one["part"]: one["message"] for one in gateway.client.get("/ready").json()["problems"]}
        assert "reload or restart the gateway" in problems["budgets"]
        assert metric(gateway.client, "pika_budget_spent_ratio") > 0, "as last known"
        gateway.hang_up("reloaded")
        assert chat(gateway.client, headers).status_code == 200
