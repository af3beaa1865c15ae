"""Clients that give their requests the same ids: each key's are its own, in the ledger and for outcomes."""

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from server.ledger.database import Database, open_database, parse_url
from server.ledger.outcome import Outcome, Recorded
from server.ledger.outcomes import record
from server.ledger.reader import read_decisions
from server.ledger.tables import decisions, outcomes
from server.ledger.writer import Writer
from tests.support import upstream as faults
from tests.support.gateway_client import chat, gateway
from tests.support.keys import new_key
from tests.support.ledger import POOL, decision, read_rollups
from tests.support.lost_answer import wire
from tests.support.postgresql import PostgreSql
from tests.support.processes import until


@contextmanager
def opened(url: str) -> Iterator[tuple[Writer, Database]]:
    with closing(open_database(url)) as database, closing(Writer(Database(parse_url(url)), POOL)) as writer:
        yield writer, database


def kept(database: Database) -> set[tuple[str, str | None, int]]:
    """Id, key and arm of each decision."""
    with database.read() as connection:
        rows = connection.execute(select(decisions.c.request_id, decisions.c.key, decisions.c.arm))
        return {tuple(row) for row in rows}  # type: ignore[misc]


KEYS = ("ann", "ben", None, "cid")


@pytest.mark.parametrize("at_once", [True, False])
def test_each_keys_request_is_kept_and_its_own_last_one_stands(ledger_url: str, at_once: bool) -> None:
    with opened(ledger_url) as (writer, database):
        for arm in (0, 2):  # twice, the second time with another arm
            for key in KEYS:
                for name in ("1", "2"):
                    writer.put(decision(name, key=key, arm=arm))
                if not at_once:
                    writer.flush().result(20)
        writer.flush().result(20)
        found = kept(database)
        assert len(found) == 2 * len(KEYS)
        assert {(id_.split()[0], key) for id_, key, _ in found} == {(name, key) for name in "12" for key in KEYS}
        assert {arm for *_, arm in found} == {2}
        assert {("1", "ann", 2), ("1 key=ben", "ben", 2), ("1 no key", None, 2)} <= found
        assert sum(one.sums.requests for one in read_rollups(database, 0)[1]) == 4 * len(KEYS)


def test_among_many_only_those_that_collide_have_another_id(ledger_url: str) -> None:
    with opened(ledger_url) as (writer, database):
        for i in range(0, 900, 9):
            writer.put(decision(f"{i}", key="ann"))
        writer.flush().result(20)
        for i in range(900):
            writer.put(decision(f"{i}", key="ben"))
        writer.flush().result(20)
        found = {id_ for id_, key, _ in kept(database) if key == "ben"}
    assert found == {f"{i}" if i % 9 else f"{i} key=ben" for i in range(900)}


def test_two_gateways_that_write_at_once_lose_none(ledger_url: str) -> None:
    with opened(ledger_url) as (one, database), opened(ledger_url) as (other, _):
        for i in range(300):
            one.put(decision(f"{i}", key="ann"))
            other.put(decision(f"{i}", key="ben"))
        one.flush().result(30)
        other.flush().result(30)
        assert {(id_.split()[0], key) for id_, key, _ in kept(database)} == {
            (f"{i}", key) for i in range(300) for key in ("ann", "ben")
        }


def say(database: Database, id_: str, key: str | None, correct: float = 1.0) -> Recorded | None:
    with database.write() as connection:
        return record(connection, [Outcome(id_, "client", correct, key)], time.time())[0]


def test_an_outcome_is_of_the_same_keys_answer(ledger_url: str) -> None:
    with opened(ledger_url) as (writer, database):
        for arm, key in enumerate(("ann", "ben")):
            writer.put(decision("1", key=key, arm=arm, beginning=b'{"id":"chatcmpl-1"'))
        for arm, key in enumerate(("ann", "ben")):
            writer.put(decision(f"of-{key}", key=key, arm=arm, beginning=b'{"id":"same"'))
        writer.flush().result(20)
        for id_ in ("1", "chatcmpl-1", "same"):
            told = {key: say(database, id_, key) for key in ("ann", "ben", "cid")}
            assert told["cid"] is None
            assert told["ann"] is not None
            assert told["ben"] is not None
            assert (told["ann"].arm, told["ben"].arm) == ("small", "medium")
            assert " " not in told["ben"].request_id
        assert say(database, "1 key=ben", None) is not None, "the operator's, as the ledger has it"
        with database.read() as connection:
            of = connection.execute(select(outcomes.c.request_id, outcomes.c.arm)).all()
        assert {tuple(row) for row in of} == {
            ("1", "small"),
            ("1 key=ben", "medium"),
            ("of-ann", "small"),
            ("of-ben", "medium"),
        }
        assert read_decisions(database).outcome.tolist() == [1.0] * 4


def test_where_nobody_asks_for_keys_any_more_the_latest_is_meant(ledger_url: str) -> None:
    with opened(ledger_url) as (writer, database):
        writer.put(decision("1", key="ann", arm=0))
        writer.flush().result(20)
        assert say(database, "1", None) == Recorded("1", "small", 200, 0.5, True)
        writer.put(decision("1", arm=1))
        writer.flush().result(20)
        told = say(database, "1", None)
        assert told is not None
        assert (told.request_id, told.arm) == ("1", "medium")


async def answers_as_vllm(request: faults.Request, to: faults.Connection) -> None:
    body = faults.WHOLE.replace(b'"chatcmpl-1"', b'"chatcmpl-%b"' % request.headers["x-request-id"].encode())
    await to.send(faults.response(200, body))


def test_through_the_gateway_each_key_speaks_of_its_own(tmp_path: Path, ledger_url: str) -> None:
    file = tmp_path / "keys.yaml"
    keys = {"small": new_key(file, "ann"), "large": new_key(file, "ben")}
    handlers: dict[str, list[Any]] = {"small": [answers_as_vllm], "large": [answers_as_vllm]}
    with gateway(handlers, ledger={"url": ledger_url}, keys={"file": str(file)}) as (client, _):

        def post(id_: str, headers: dict[str, str]) -> httpx.Response:
            return client.post("/v1/outcomes", json={"id": id_, "correct": True}, headers=headers)

        for arm, key in keys.items():
            assert chat(client, {**key, "x-request-id": "1"}, model=arm).status_code == 200
        for arm, key in keys.items():
            for id_ in ("1", "chatcmpl-1"):
                answer = post(id_, key)
                assert answer.status_code == 200, answer.text
                assert (answer.json()["request_id"], answer.json()["arm"]) == ("1", arm)
        # Nor can anybody send the id that another's request got.
        assert post("1 key=ben", keys["small"]).status_code == 400


def test_a_commit_whose_answer_is_lost_counts_once_under_a_taken_id_too(postgresql: PostgreSql) -> None:
    direct = postgresql.make(f"lost_one_id_{os.getpid()}")
    with wire(postgresql.port) as between, closing(Writer(Database(parse_url(between.url(direct))), POOL)) as writer:
        writer.put(decision("1", key="ann"))
        database = open_database(direct)
        until(lambda: len(kept(database)) == 1, 20, "the first is written")
        between.armed = True
        writer.put(decision("1", key="ben"))
        assert between.lost.wait(20)
        writer.put(decision("2", key="ben"))
    assert {id_ for id_, *_ in kept(database)} == {"1", "1 key=ben", "2"}
    assert sum(one.sums.requests for one in read_rollups(database, 0)[1]) == 3
    database.close()
