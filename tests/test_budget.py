"""Budgets hold: whatever comes at once, from however many processes, and whoever is killed in the middle."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, text

from server.errors import BudgetError, BudgetUnavailableError
from server.keys.budget import Budgets, begins, ends
from server.keys.known import Key
from server.keys.spending import PICO
from server.ledger.database import Database, open_database, parse_url
from server.ledger.tables import budgets, reservations
from tests.support import upstream as faults
from tests.support.garbage import alive, no_collector
from tests.support.gateway import write_pool
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.keys import new_key
from tests.support.postgresql import PostgreSql
from tests.support.processes import descendants, until
from tests.support.serve import served
from tests.support.upstream import Connection, Request

CENT = PICO // 100


def key(name: str = "team", **budgets_usd: float) -> Key:
    return Key(name, b"", b"", None, None, {}, None, None, budgets_usd)  # type: ignore[arg-type]


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 2, 27, 12, tzinfo=UTC).timestamp()

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def opened(url: str, clock: Any = time.time) -> AsyncIterator[Budgets]:
    kept = Budgets(Database(parse_url(url)), clock)
    try:
        yield kept
    finally:
        await asyncio.to_thread(kept.close)


def audit(url: str) -> tuple[int, int, int]:
    """Pico-USD spent and reserved today, and how many reservations nobody has settled."""
    database = open_database(url)
    with database.read() as connection:
        [row] = connection.execute(select(budgets).where(budgets.c.period == "day")).all()
        unsettled = len(connection.execute(select(reservations)).all())
    database.close()
    return row.spent_pico_usd, row.reserved_pico_usd, unsettled


async def granted(kept: Budgets, of: Key, pico_usd: int, times: int) -> int:
    """How many of so many at once are reserved."""
    went = await asyncio.gather(*(kept.reserve(kept.claim(of), pico_usd) for _ in range(times)), return_exceptions=True)
    assert all(one is None or isinstance(one, BudgetError) for one in went), went
    return sum(one is None for one in went)


@pytest.mark.parametrize("usd", [0.5, 0.1, 1 / 3])
async def test_at_once_exactly_as_many_as_the_budget_holds(ledger_url: str, usd: float) -> None:
    """Fifty, for however they are written in floating point, fifty times a fiftieth is the whole."""
    async with opened(ledger_url) as kept:
        of = key(day=usd)
        assert await granted(kept, of, round(usd * PICO) // 50, 200) == 50


async def test_what_is_settled_makes_room(ledger_url: str) -> None:
    async with opened(ledger_url) as kept:
        of = key(day=0.1)
        claims = [kept.claim(of) for _ in range(10)]
        for claim in claims:
            await kept.reserve(claim, CENT)
        assert await granted(kept, of, 1, 1) == 0
        for claim in claims:
            kept.settle(claim, CENT // 10)
            kept.settle(claim, CENT // 10)  # twice is once
        assert await granted(kept, of, CENT, 20) == 9
        kept.settle(kept.claim(of), CENT)  # of what was never reserved: nothing
    assert audit(ledger_url) == (CENT, 9 * CENT, 9)


async def test_who_is_refused_leaves_nothing(tmp_path: Path) -> None:
    async with opened(f"sqlite:///{tmp_path}/ledger.sqlite") as kept:
        of = key(day=0.1)
        with no_collector():
            for _ in range(10):
                assert await granted(kept, of, 11 * CENT, 1) == 0
            assert alive(BudgetError)[BudgetError] <= 1  # the thread that refused it has not begun anything new


async def test_a_reservation_is_raised_or_left_as_it_was(ledger_url: str) -> None:
    async with opened(ledger_url) as kept:
        claim = kept.claim(key(day=0.1))
        await kept.reserve(claim, 2 * CENT)
        await kept.reserve(claim, 10 * CENT, again=True)
        with pytest.raises(BudgetError):
            await kept.reserve(claim, 11 * CENT, again=True)
        assert await granted(kept, key(day=0.1), 1, 1) == 0
        kept.settle(claim, 3 * CENT)
        assert await granted(kept, key(day=0.1), CENT, 10) == 7


async def test_both_periods_hold_and_end_by_utc(ledger_url: str) -> None:
    clock = Clock()
    async with opened(ledger_url, clock) as kept:
        of = key(day=0.02, month=0.03)
        assert await granted(kept, of, CENT, 5) == 2
        with pytest.raises(BudgetError) as caught:
            await kept.reserve(kept.claim(of), CENT)
        assert caught.value.retry_after_s == 12 * 3600
        assert "$0 of this key's $0.02 a day are left until 2026-02-28T00:00:00Z" in str(caught.value)
        clock.now += 24 * 3600
        assert await granted(kept, of, CENT, 5) == 1
        with pytest.raises(BudgetError) as caught:
            await kept.reserve(kept.claim(of), CENT)
        assert caught.value.retry_after_s == 12 * 3600  # the month ends with this day, too
        clock.now -= 24 * 3600  # a clock that goes back finds what was spent then
        assert await granted(kept, of, CENT, 5) == 0
        clock.now += 2 * 24 * 3600
        assert begins("month", clock()) == datetime(2026, 3, 1, tzinfo=UTC).timestamp()
        assert await granted(kept, of, CENT, 5) == 2


async def test_what_ends_after_midnight_counts_where_it_began(ledger_url: str) -> None:
    clock = Clock()
    async with opened(ledger_url, clock) as kept:
        claim = kept.claim(key(day=0.02))
        await kept.reserve(claim, CENT)
        clock.now += 24 * 3600
        await kept.reserve(claim, 2 * CENT, again=True)
        kept.settle(claim, 2 * CENT)
        assert await granted(kept, key(day=0.02), CENT, 5) == 2
        clock.now -= 24 * 3600
        assert await granted(kept, key(day=0.02), CENT, 5) == 0


def test_months_have_their_own_lengths() -> None:
    for month, days in ((1, 31), (2, 28), (4, 30), (12, 31)):
        start = int(datetime(2026, month, 1, tzinfo=UTC).timestamp())
        assert ends("month", start) - start == days * 24 * 3600


async def test_who_no_longer_waits_holds_nothing(ledger_url: str) -> None:
    """Clients that leave while their reservations are made: each is settled, as every request that ends."""
    async with opened(ledger_url) as kept:
        of = key(day=1.0)
        claims = [kept.claim(of) for _ in range(50)]
        tasks = [asyncio.create_task(kept.reserve(claim, CENT)) for claim in claims]
        await asyncio.sleep(0)
        for task, claim in zip(tasks, claims, strict=True):
            task.cancel()
            kept.settle(claim, 0)
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await granted(kept, of, CENT, 200) == 100


async def test_several_gateways_share_one_budget(ledger_url: str) -> None:
    async with opened(ledger_url) as first, opened(ledger_url) as second, opened(ledger_url) as third:
        went = await asyncio.gather(*(granted(one, key(day=0.5), CENT, 100) for one in (first, second, third)))
        assert sum(went) == 50
        names = {"team": {"day": 0.5, "month": 0.5}}
        assert await asyncio.to_thread(second.spent, [key(day=0.5)]) == names


async def test_while_the_database_is_away_nothing_is_spent(tmp_path: Path) -> None:
    folder = tmp_path / "not-there-yet"
    async with opened(f"sqlite:///{folder}/ledger.sqlite") as kept:
        with pytest.raises(BudgetUnavailableError):
            await kept.reserve(kept.claim(key(day=1.0)), CENT)
        assert kept.problem is not None
        assert "there is no folder" in kept.problem
        folder.mkdir()
        await until_granted(kept)
        assert kept.problem is None


async def until_granted(kept: Budgets) -> None:
    """Ask until the database is there again."""
    for _ in range(100):
        with suppress(BudgetUnavailableError):
            return await kept.reserve(kept.claim(key(day=1.0)), CENT)
        await asyncio.sleep(0.2)
    raise AssertionError(f"nothing is granted: {kept.problem}")


async def test_a_garbled_ledger_refuses_rather_than_forgets(tmp_path: Path) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(os.urandom(8192))
    async with opened(f"sqlite:///{tmp_path}/ledger.sqlite") as kept:
        with pytest.raises(BudgetUnavailableError):
            await kept.reserve(kept.claim(key(day=1.0)), CENT)


async def test_postgresql_restarted_under_load_loses_no_settlement(postgresql: PostgreSql) -> None:
    url = postgresql.make("budgets_restart")
    async with opened(url) as kept:
        of = key(day=1.0)
        claims = [kept.claim(of) for _ in range(20)]
        for claim in claims:
            await kept.reserve(claim, CENT)
        postgresql.stop()
        for claim in claims:
            kept.settle(claim, CENT // 2)
        with pytest.raises(BudgetUnavailableError):
            await kept.reserve(kept.claim(of), CENT)
        postgresql.start()
        await until_granted(kept)
    assert audit(url) == (10 * CENT, CENT, 1)


# The gateway


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


async def slowly(request: Request, to: Connection) -> None:
    """Answers once all that will come has come, so that nothing is settled before."""
    await to.upstream.go_on.wait()
    await faults.answers(request, to)


ANSWER_USD = (11 * 0.1 + 7 * 0.4) / 1e6
"""What each answer of the only arm costs, by its usage."""


def most_usd(body_bytes: int, max_tokens: int, price: float = 0.1) -> float:
    """What the documentation says is reserved."""
    return (min(body_bytes + 256, 4096) * price + max_tokens * 4 * price) / 1e6


BODY: dict[str, Any] = {"model": "auto", "messages": MESSAGES, "max_tokens": 100}


def body_bytes() -> int:
    return len(httpx.Request("POST", "http://x", json=BODY).content)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_two_hundred_at_once_against_a_budget_for_fifty(file: Path, ledger_url: str, workers: str) -> None:
    usd = round(50 * most_usd(body_bytes(), 100), 12)
    headers = new_key(file, "team", usd_per_day=usd)
    with faults.running(slowly) as upstream:
        config = write_pool(
            file.parent, {"small": [upstream.url]}, keys={"file": str(file)}, ledger={"url": ledger_url}
        )
        with served(config, None, "--workers", workers) as running, ThreadPoolExecutor(200) as pool:
            client = running.client
            asked = [pool.submit(ask_once, str(client.base_url), headers) for _ in range(200)]
            until(lambda: sum(one.done() for one in asked) == 150, 60, "those over the budget are refused")
            assert len(upstream.requests) == 50
            refused = chat(client, headers, max_tokens=100)
            error = refused.json()["error"]
            assert (refused.status_code, error["type"], error["code"]) == (
                429,
                "insufficient_quota",
                "insufficient_quota",
            )
            assert 0 < int(refused.headers["retry-after"]) <= 24 * 3600
            assert refused.headers["x-should-retry"] == "false"
            upstream.let_go_on()
            codes = [one.result() for one in asked]
            assert (codes.count(200), codes.count(429)) == (50, 150)
            used = pytest.approx(50 * ANSWER_USD / usd)
            until(lambda: metric(client, 'pika_budget_spent_ratio{key="team"}') == used, 10, "all is settled")
            assert chat(client, headers, max_tokens=100).status_code == 200
    assert audit(ledger_url) == (51 * round(ANSWER_USD * PICO), 0, 0)


@contextmanager
def budgeted(
    file: Path, handlers: dict[str, list[Any]], usd: float, **sections: Any
) -> Iterator[tuple[httpx.Client, dict[str, str], str]]:
    """A gateway, the headers of a key with this budget a day, and its ledger's URL."""
    headers = new_key(file, "team", usd_per_day=round(usd, 12))
    url = f"sqlite:///{file.parent}/ledger.sqlite"
    with gateway(handlers, keys={"file": str(file)}, ledger={"url": url}, **sections) as (client, _):
        yield client, headers, url


async def test_what_is_reserved_outlives_a_power_cut(tmp_path: Path) -> None:
    """As SQLite promises for what is committed with `synchronous=FULL`, which is 2; decisions do without."""
    database = Database(parse_url(f"sqlite:///{tmp_path}/ledger.sqlite"))
    kept = Budgets(database)
    await kept.reserve(kept.claim(key(day=1.0)), CENT)
    with database.read() as connection:
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2
    await asyncio.to_thread(kept.close)


def test_a_reservation_is_committed_before_anything_is_sent(file: Path) -> None:
    most = round(most_usd(body_bytes(), 100) * PICO)
    seen = []

    async def looks(request: Request, to: Connection) -> None:
        seen.append(audit(f"sqlite:///{file.parent}/ledger.sqlite"))
        await faults.answers(request, to)

    with budgeted(file, {"small": [looks]}, 1) as (client, headers, url):
        assert chat(client, headers, max_tokens=100).status_code == 200
    assert seen == [(0, most, 1)]
    assert audit(url) == (round(ANSWER_USD * PICO), 0, 0)


def test_what_was_sent_and_nobody_knows_the_cost_of_counts_in_full(file: Path) -> None:
    """A stream that breaks off, and a client that leaves: both had generated something."""
    most = most_usd(len(httpx.Request("POST", "http://x", json={**BODY, "stream": True}).content), 100)
    with budgeted(file, {"small": [faults.drops_in_mid_stream]}, 10 * most) as (client, headers, url):
        assert "error" in chat(client, headers, max_tokens=100, stream=True).text
    assert audit(url) == (round(most * PICO), 0, 0)


def test_a_client_that_leaves_has_reserved_for_good(file: Path) -> None:
    most = most_usd(len(httpx.Request("POST", "http://x", json={**BODY, "stream": True}).content), 100)
    with budgeted(file, {"small": [faults.streams_on]}, 10 * most) as (client, headers, url):
        with client.stream("POST", PATH, json={**BODY, "stream": True}, headers=headers) as answer:
            next(answer.iter_raw())
        until(lambda: client.get("/metrics").text.count('code="499"') == 1, 10, "it has left")
    assert audit(url) == (round(most * PICO), 0, 0)


@pytest.mark.parametrize("handler", [faults.fails_with(400), faults.fails_with(500)])
def test_an_error_of_the_upstream_costs_nothing(file: Path, handler: Any) -> None:
    with budgeted(file, {"small": [handler]}, 10 * most_usd(200, 100)) as (client, headers, url):
        assert chat(client, headers, max_tokens=100).status_code in (400, 500)
    assert audit(url) == (0, 0, 0)


def test_what_reached_nobody_costs_nothing(file: Path) -> None:
    with budgeted(file, {"small": [faults.drops_at_once]}, 1) as (client, headers, url):
        assert chat(client, headers, model="none").status_code == 404
        assert chat(client, headers, max_tokens=100).status_code == 502
    spent, reserved, unsettled = audit(url)
    assert (reserved, unsettled) == (0, 0)
    assert spent == round(most_usd(body_bytes(), 100) * PICO)  # of the one that dropped, nobody knows


def test_a_dearer_arm_is_covered_before_it_is_asked(file: Path) -> None:
    """The cheap arm fails; the budget holds an answer of its, and none of the next one's."""
    most = most_usd(body_bytes(), 100)
    handlers = {"small": [faults.fails_with(500)], "large": [faults.answers]}
    with budgeted(file, handlers, 2 * most) as (client, headers, url):
        answer = chat(client, headers, model="auto-min_cost", max_tokens=100)
        assert answer.status_code == 429
        assert answer.json()["error"]["code"] == "insufficient_quota"
        assert chat(client, headers, model="large", max_tokens=100).status_code == 429
    assert audit(url) == (0, 0, 0)


@pytest.mark.parametrize(
    ("fields", "tokens"),
    [
        ({}, 4096),  # all that the context holds
        ({"max_tokens": 10**9}, 4096),
        ({"max_tokens": 50, "n": 3}, 150),
        ({"max_tokens": 50, "max_completion_tokens": 70}, 70),
        ({"max_completion_tokens": 0, "max_tokens": 60}, 60),
    ],
)
def test_what_is_reserved(file: Path, fields: dict[str, Any], tokens: int) -> None:
    body = {"model": "auto", "messages": MESSAGES, **fields}
    most = most_usd(len(httpx.Request("POST", "http://x", json=body).content), tokens)
    with budgeted(file, {"small": [faults.answers]}, most) as (client, headers, _):
        assert chat(client, headers, **fields).status_code == 200
    file.unlink()
    (file.parent / "ledger.sqlite").unlink()
    with budgeted(file, {"small": [faults.answers]}, most - 1e-9) as (client, headers, _):
        assert chat(client, headers, **fields).status_code == 429


@pytest.mark.parametrize(
    "fields",
    [
        {"max_completion_tokens": "5000", "max_tokens": 1},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"max_tokens": -1},
        {"max_tokens": 1, "n": "1000"},
        {"max_tokens": 1, "best_of": [7]},
    ],
)
def test_a_bound_that_only_looks_like_one_is_refused(file: Path, fields: dict[str, Any]) -> None:
    with budgeted(file, {"small": [faults.answers]}, 1) as (client, headers, url):
        answer = chat(client, headers, **fields)
        assert answer.status_code == 400
        assert "must be a whole number" in answer.json()["error"]["message"]
    database = open_database(url)
    with database.read() as connection:
        assert not connection.execute(select(budgets)).all()
    database.close()


def test_an_image_counts_as_a_whole_context(file: Path) -> None:
    content = [{"type": "image_url", "image_url": {"url": "http://x/y.png"}}]
    most = most_usd(4096, 10)
    with budgeted(file, {"small": [faults.answers]}, most - 1e-9) as (client, headers, _):
        answer = chat(client, headers, model="small", messages=[{"role": "user", "content": content}], max_tokens=10)
        assert answer.status_code == 429


def test_keys_without_a_budget_do_not_wait_for_one(file: Path) -> None:
    free = new_key(file, "free")
    with budgeted(file, {"small": [faults.answers]}, 1) as (client, headers, url):
        assert chat(client, headers).status_code == 200
        database = open_database(url)
        with database.write():  # nobody else can write
            assert chat(client, free).status_code == 200
        database.close()


def test_a_ledger_that_is_away_stops_keys_with_budgets_alone(file: Path) -> None:
    free = new_key(file, "free")
    limited = new_key(file, "team", usd_per_day=1)
    ledger = {"url": f"sqlite:///{file.parent}/nowhere/ledger.sqlite"}
    with gateway({"small": [faults.answers]}, keys={"file": str(file)}, ledger=ledger) as (client, _):
        assert chat(client, free).status_code == 200
        answer = chat(client, limited)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["code"] == "budget_unavailable"
        assert "budgets" in [problem["part"] for problem in client.get("/ready").json()["problems"]]


def test_killed_in_the_middle_the_ledger_says_no_less_than_the_clients_know(file: Path, ledger_url: str) -> None:
    """Two workers under load, one of them killed, then all: whatever was sent is spent or still reserved."""
    most = most_usd(body_bytes(), 100)
    usd = 400 * most
    headers = new_key(file, "team", usd_per_day=round(usd, 12))
    with faults.running(streams_a_little) as upstream:
        sections = {"keys": {"file": str(file)}, "ledger": {"url": ledger_url}}
        config = write_pool(file.parent, {"small": [upstream.url]}, **sections)
        with served(config, None, "--workers", "2") as running:
            base = str(running.client.base_url)
            with ThreadPoolExecutor(40) as pool:
                asked = [pool.submit(ask_once, base, headers) for _ in range(600)]
                until(lambda: len(upstream.requests) > 100, 60, "requests are under way")
                os.kill(next(iter(workers_of(running.process.pid))), signal.SIGKILL)
                codes = [one.result() for one in asked]
            answered = codes.count(200)
        spent, reserved, unsettled = audit(ledger_url)
    sent = len(upstream.requests)
    assert codes.count(0) >= 1, "nobody noticed the kill"
    assert answered <= sent
    # All that was sent counts: with its cost, or in full where the killed one had not settled it.
    assert spent + reserved >= sent * round(ANSWER_USD * PICO)
    assert spent + reserved <= round(usd * PICO)
    assert reserved == unsettled * round(most * PICO)
    # The rest of the budget holds so many more, and not one further.
    database = open_database(ledger_url)
    left = (round(usd * PICO) - spent - reserved) // round(most * PICO)
    with database.write() as connection:
        connection.execute(text("UPDATE budgets SET reserved_pico_usd = reserved_pico_usd + :more"),
                           {"more": (left - 10) * round(most * PICO)})  # fmt: skip
    database.close()
    with faults.running(slowly) as upstream:
        config = write_pool(file.parent, {"small": [upstream.url]}, **sections)
        with served(config, None, "--workers", "2") as running:
            base = str(running.client.base_url)
            with ThreadPoolExecutor(30) as pool:
                asked = [pool.submit(ask_once, base, headers) for _ in range(30)]
                until(lambda: sum(one.done() for one in asked) == 20, 30, "those over the budget are refused")
                upstream.let_go_on()
                codes = [one.result() for one in asked]
            assert (codes.count(200), codes.count(429)) == (10, 20)


async def streams_a_little(request: Request, to: Connection) -> None:
    await asyncio.sleep(0.05)  # so that some are under way whenever somebody is killed
    await faults.answers(request, to)


def ask_once(base: str, headers: dict[str, str]) -> int:
    """The code; 0 where the connection broke."""
    try:
        # Of certificates nothing need be read, which would take longer than all else.
        return httpx.post(f"{base}{PATH}", json=BODY, headers=headers, timeout=60, verify=False).status_code
    except httpx.TransportError:
        return 0


def workers_of(pid: int) -> set[int]:
    found = set()
    for child in descendants(pid):
        if b"server.workers.worker" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
            found.add(child)
    return found
