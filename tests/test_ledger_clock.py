"""A clock that jumps takes nothing out of the ledger; one that stands is believed after a day."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from sqlalchemy import func, select

from server.ledger import writer as writer_module
from server.ledger.database import Database, open_database, parse_url
from server.ledger.jumps import Jumps
from server.ledger.outcome import Outcome
from server.ledger.outcomes import record
from server.ledger.retention import Keep
from server.ledger.row import SessionRow
from server.ledger.sessions import save
from server.ledger.tables import decisions, outcomes, sessions
from server.ledger.writer import Writer
from tests.support import upstream as faults
from tests.support.gateway_client import chat, gateway
from tests.support.ledger import POOL, many, read_rollups
from tests.support.processes import until

DAY_S = 24 * 3600.0


class Clocks:
    """The machine's, and one that nobody sets, both by hand."""

    def __init__(self) -> None:
        self.ahead_s = 0.0
        self.passed_s = 0.0
        self.looks = 0
        self.jumps = Jumps(self.wall, self.steady)

    def wall(self) -> float:
        self.looks += 1
        return time.time() + self.ahead_s + self.passed_s

    def steady(self) -> float:
        return time.monotonic() + self.passed_s

    def seen(self) -> None:
        """Wait for the writer to have looked twice more, so that it has deleted what it would."""
        before = self.looks
        until(lambda: self.looks >= before + 2, 20, "the writer looks at the clock")


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked for what is too old again and again."""
    monkeypatch.setattr(writer_module, "TIDY_S", 0.05)


@contextmanager
def writing(url: str, clocks: Clocks, keep: Keep = Keep(days=30)) -> Iterator[Writer]:  # noqa: B008  # frozen
    with closing(Writer(Database(parse_url(url)), POOL, keep, clock=clocks.wall, jumps=clocks.jumps)) as writer:
        yield writer


def fill(writer: Writer) -> None:
    """Twenty decisions, an outcome of each, and a conversation."""
    rows = many(20)
    for row in rows:
        writer.put(row)
    said = [Outcome(row.request_id, "client", 1.0) for row in rows]
    assert None not in writer.submit(lambda connection: record(connection, said, time.time())).result(20)
    session = SessionRow("s", "small", "small", None, None, 1, time.time())
    writer.submit(lambda connection: save(connection, [session])).result(20)


def kept(url: str) -> tuple[int, ...]:
    """Decisions, outcomes, conversations, and requests in the sums by minute."""
    with closing(open_database(url)) as database:
        with database.read() as connection:
            counts = [
                connection.execute(select(func.count()).select_from(table)).scalar_one()
                for table in (decisions, outcomes, sessions)
            ]
        sums = sum(one.sums.requests for one in read_rollups(database, 0, span_s=60)[1])
    return (*counts, sums)


ALL = (20, 20, 1, 20)


def test_a_clock_that_jumps_ahead_and_back_deletes_nothing(ledger_url: str) -> None:
    clocks = Clocks()
    with writing(ledger_url, clocks) as writer:
        fill(writer)
        clocks.seen()
        assert writer.clock_problem is None
        clocks.ahead_s = 31 * DAY_S
        clocks.seen()
        assert writer.clock_problem == "the clock jumped by 31 days: nothing is deleted by its age for a day"
        assert kept(ledger_url) == ALL
        clocks.ahead_s = 0.0
        clocks.seen()
        clocks.passed_s = 1.01 * DAY_S
        clocks.seen()
        assert writer.clock_problem is None
    assert kept(ledger_url)[:2] == ALL[:2]


def test_the_gateway_says_so_and_is_ready(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = Clocks()
    monkeypatch.setattr("server.live.Jumps", lambda: clocks.jumps)
    with gateway({"small": [faults.answers]}, ledger={"url": ledger_url}) as (client, _):
        assert chat(client).status_code == 200
        assert client.get("/ready").json()["problems"] == []
        clocks.ahead_s = 31 * DAY_S
        until(lambda: client.get("/ready").json()["problems"] != [], 20, "/ready tells")
        said = client.get("/ready")
        assert said.status_code == 200
        assert said.json()["problems"] == [
            {"part": "ledger", "message": "the clock jumped by 31 days: nothing is deleted by its age for a day"}
        ]


def test_a_clock_that_stays_ahead_is_believed_after_a_day(ledger_url: str) -> None:
    clocks = Clocks()
    with writing(ledger_url, clocks) as writer:
        fill(writer)
        clocks.ahead_s = 31 * DAY_S
        clocks.seen()
        clocks.passed_s = 0.9 * DAY_S
        clocks.seen()
        assert kept(ledger_url) == ALL
        clocks.passed_s = 1.1 * DAY_S
        until(lambda: kept(ledger_url) == (0, 0, 0, 0), 20, "it is believed")
        assert writer.clock_problem is None


def test_a_reload_remembers_the_jump(ledger_url: str) -> None:
    clocks = Clocks()
    with writing(ledger_url, clocks) as writer:
        fill(writer)
        clocks.ahead_s = 31 * DAY_S
        clocks.seen()
    with writing(ledger_url, clocks) as writer:
        for row in many(1, at=clocks.wall()):  # as if the clock were right
            writer.put(row)
        clocks.seen()
        clocks.seen()
        assert writer.clock_problem is not None
    assert kept(ledger_url)[1:3] == ALL[1:3]


def test_a_clock_that_is_ahead_at_the_start_deletes_nothing(ledger_url: str, caplog: Any) -> None:
    caplog.set_level("INFO")
    with writing(ledger_url, Clocks()) as writer:
        fill(writer)
    wrong = Clocks()
    wrong.ahead_s = 31 * DAY_S
    wrong.jumps = Jumps(wrong.wall, wrong.steady)
    with writing(ledger_url, wrong) as writer:
        writer.opened.wait(20)
        wrong.seen()
        assert kept(ledger_url) == ALL
        wrong.ahead_s = 0.0  # as network time has it
        wrong.seen()
        assert kept(ledger_url) == ALL
    assert "its last decision is 31 days old" in caplog.text


def test_by_number_they_go_whatever_the_clock_says(ledger_url: str) -> None:
    clocks = Clocks()
    with writing(ledger_url, clocks) as writer:
        fill(writer)
    clocks.ahead_s = 31 * DAY_S
    with writing(ledger_url, clocks, Keep(days=30, decisions=5)):
        until(lambda: kept(ledger_url) == (5, 5, 1, 20), 20, "five are left, with their outcomes")


def test_a_machine_that_slept_did_not_jump() -> None:
    clocks = Clocks()
    clocks.passed_s = 2 * DAY_S
    assert clocks.jumps.look() is not None
    assert clocks.jumps.problem is None
