"""Conversations that several workers, machines and starts share through the ledger."""

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from server.ledger.database import open_database
from server.ledger.retention import SLICE_ROWS, Keep, tidy
from server.ledger.row import SessionRow
from server.ledger.sessions import find, save
from server.ledger.tables import decisions, sessions
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import PATH, chat, gateway
from tests.support.processes import until
from tests.support.serve import served
from tests.test_session import ARMS, CHEAPEST, TOOL_RESULT, told, turns

SESSION = {"margin": 0.5}
PERSON = "alice@example.org"


def ask(base: httpx.URL, **fields: Any) -> tuple[str, str]:
    """On a connection of its own, which any worker may take."""
    return told(httpx.post(f"{base}{PATH}", json={"model": "auto", **fields}, timeout=30))


def test_several_workers_know_a_conversation(tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = {name: [stack.enter_context(faults.running(faults.answers)).url] for name in ARMS}
        file = write_pool(tmp_path, urls, session=SESSION, ledger={})
        base = stack.enter_context(served(file, None, "--workers", "2")).client.base_url
        pool = stack.enter_context(ThreadPoolExecutor(8))

        def begin(i: int) -> tuple[str, str]:
            ask(base, messages=turns(f"{i}?", 0), **CHEAPEST)
            # At once, as agents do: the turn before may not even be written.
            return ask(base, messages=turns(f"{i}?", 1, TOOL_RESULT))

        def go_on(i: int) -> tuple[str, str]:
            return ask(base, messages=turns(f"{i}?", 2))

        assert set(pool.map(begin, range(40))) == {("small", "sticky")}
        url = f"sqlite:///{tmp_path}/pika-ledger.sqlite"
        until(lambda: sum(row.turn == 1 for row in _sessions(url)) == 40, 10, "all is written")
        assert set(pool.map(go_on, range(40))) == {("small", "sticky")}


def test_a_conversation_outlives_the_gateway(tmp_path: Path) -> None:
    """On its arm, and on the replica whose prefix cache knows it."""
    with ExitStack() as stack:
        replicas = [stack.enter_context(faults.running(faults.answers)) for _ in range(3)]
        others = {name: [stack.enter_context(faults.running(faults.answers)).url] for name in ARMS[1:]}
        urls = {"small": [replica.url for replica in replicas], **others}
        file = write_pool(tmp_path, urls, session=SESSION, ledger={})
        for n in range(3):
            with served(file) as running:
                chat(running.client, messages=turns("Another?", 1))  # the first look-up, in 0.1 s, opens the database
                for i in (*range(n, 6), *range(n)):  # replicas take turns, and each start would have them do the same
                    answer = chat(running.client, messages=turns(f"{i}?", n), **(CHEAPEST if n == 0 else {}))
                    assert told(answer) == ("small", "sticky" if n else "routed")
    asked = [[request.body["messages"][1]["content"] for request in replica.requests] for replica in replicas]
    assert sorted(len(conversations) for conversations in asked if conversations) != [18], "one replica took all"
    assert [len(conversations) for conversations in asked] == [3 * len(set(conversations)) for conversations in asked]


def test_two_gateways_on_one_database_know_each_others_conversations(ledger_url: str) -> None:
    both: dict[str, Any] = {"session": SESSION, "ledger": {"url": ledger_url}}
    handlers = {name: [faults.answers] for name in ARMS}
    with gateway(handlers, **both) as (first, _), gateway(handlers, **both) as (second, _):
        chat(first, {"x-session-id": PERSON}, messages=turns("One?", 0), **CHEAPEST)
        until(lambda: bool(_sessions(ledger_url)), 10, "the conversation is written")
        assert told(chat(second, {"x-session-id": PERSON}, messages=turns("One?", 1)))[1] == "sticky"
        written = _sessions(ledger_url)[0]
        assert (written.arm, written.last, written.turn) == ("small", "small", 0) or written.turn == 1
        assert PERSON not in str(_sessions(ledger_url))
        assert "One?" not in str(_sessions(ledger_url))


def _sessions(url: str) -> list[Any]:
    database = open_database(url)
    try:
        with database.read() as connection:
            return list(connection.execute(select(sessions)))
    finally:
        database.close()


def test_what_a_decision_says_of_its_conversation_and_trial(ledger_url: str) -> None:
    handlers = {name: [faults.answers] for name in ARMS}
    trial = {"share": 0.25, "policy": {"name": "min_cost"}}
    with gateway(handlers, session=SESSION, canary=trial, ledger={"url": ledger_url}) as (client, _):
        for i in range(20):
            for n in (0, 1):
                chat(client, {"x-request-id": f"{i}-{n}"}, messages=turns(f"{i}?", n))
        chat(client, {"x-request-id": "pinned"}, model="medium")
    database = open_database(ledger_url)
    with database.read() as connection:
        rows = {row.request_id: row for row in connection.execute(select(decisions))}
    database.close()
    assert rows["pinned"].session is not None
    assert {row.path for row in rows.values()} == {"canary", "routed", "sticky", "pinned"}
    for i in range(20):
        first, second = rows[f"{i}-0"], rows[f"{i}-1"]
        assert len(first.session) == 32
        assert (first.session, first.arm) == (second.session, second.arm)
        assert first.propensity == {"canary": 0.25, "routed": 0.75}[first.path]
    assert len({row.session for row in rows.values()}) == 21


def test_shadow_decisions_tell_what_would_have_been(ledger_url: str) -> None:
    handlers = {name: [faults.answers] for name in ARMS}
    with gateway(handlers, shadow={"arm": "medium"}, ledger={"url": ledger_url}) as (client, _):
        chat(client)
    database = open_database(ledger_url)
    with database.read() as connection:
        [row] = connection.execute(select(decisions))
    database.close()
    assert (row.path, row.arm, row.policy_arm, row.propensity) == ("shadow", 1, 2, 1.0)


def test_without_its_database_a_gateway_remembers_by_itself(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    handlers = {name: [faults.answers] for name in ARMS}
    with gateway(handlers, session=SESSION, ledger={"url": f"sqlite:///{folder}/ledger.sqlite"}) as (client, _):
        chat(client, messages=turns("One?", 0), **CHEAPEST)
        shutil.rmtree(folder)
        for i in range(3):
            chat(client, messages=turns(f"Other {i}?", 0), **CHEAPEST)
            assert told(chat(client, messages=turns(f"Other {i}?", 1))) == ("small", "sticky")
        assert told(chat(client, messages=turns("One?", 1))) == ("small", "sticky")
        assert told(chat(client, messages=turns("Never seen?", 1, TOOL_RESULT))) == ("large", "routed")


def test_killed_workers_forget_nothing_that_is_written(tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = {name: [stack.enter_context(faults.running(faults.answers)).url] for name in ARMS}
        file = write_pool(tmp_path, urls, session=SESSION, ledger={})
        with served(file) as running:
            chat(running.client, messages=turns("One?", 0), **CHEAPEST)
            url = f"sqlite:///{tmp_path}/pika-ledger.sqlite"
            until(lambda: bool(_sessions(url)), 10, "the conversation is written")
            running.process.send_signal(signal.SIGKILL)
            running.process.wait(timeout=30)
        with served(file) as running:
            assert told(chat(running.client, messages=turns("One?", 1))) == ("small", "sticky")


def test_of_two_that_write_the_later_one_counts(ledger_url: str) -> None:
    database = open_database(ledger_url)

    def row(name: str, arm: str, at: float) -> SessionRow:
        return SessionRow(name, arm, arm, None, "canary", 1, at)

    with database.write() as connection:
        save(connection, [row("b", "small", 10.0), row("a", "small", 10.0)])
        save(connection, [row("a", "large", 11.0), row("b", "large", 9.0)])
    with database.read() as connection:
        assert find(connection, ["a", "b", "c"]) == {"a": row("a", "large", 11.0), "b": row("b", "small", 10.0)}
    with database.write() as connection:  # a clock was far ahead, and was set back
        save(connection, [row("a", "medium", 1e9)])
        save(connection, [row("a", "small", 12.0)])
    with database.read() as connection:
        assert find(connection, ["a"]) == {"a": row("a", "small", 12.0)}
    database.close()


def test_old_conversations_leave_the_ledger(ledger_url: str) -> None:
    database, now = open_database(ledger_url), 1e9
    with database.write() as connection:
        old = [SessionRow(f"{i}", "a", "a", None, None, 0, now - 3601) for i in range(SLICE_ROWS + 1)]
        save(connection, [*old, SessionRow("new", "a", "a", None, None, 0, now - 3599)])
        assert tidy(connection, Keep(session_minutes=60), now)
        assert not tidy(connection, Keep(session_minutes=60), now)
    with database.read() as connection:
        assert [row.session for row in connection.execute(select(sessions))] == ["new"]
    database.close()
