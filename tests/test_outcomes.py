"""What clients say of answers: found, counted, corrected, kept over a restart, and refused where it says nothing."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from sqlalchemy import func, select

from server.errors import LedgerAwayError, OverloadedError
from server.ledger.database import open_database
from server.ledger.outcome import MAX_SOURCES, Outcome
from server.ledger.tables import outcomes, rollups
from server.outcomes.gauges import calibration_error
from server.outcomes.recorder import MAX_WAITING, OutcomeRecorder
from server.sections.outcomes import Outcomes
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import chat, gateway, metric
from tests.support.keys import new_key
from tests.support.postgresql import PostgreSql
from tests.support.processes import until
from tests.support.serve import served

ARMS = {"small": [faults.answers], "medium": [faults.answers], "large": [faults.answers]}
PROBABILITY = {"small": 0.5, "medium": 0.7, "large": 0.9}


def say(client: httpx.Client, id_: Any, correct: Any, **fields: Any) -> httpx.Response:
    return client.post("/v1/outcomes", json={"id": id_, "correct": correct, **fields})


def answered(client: httpx.Client, **fields: Any) -> str:
    """The request id of an answer."""
    answer = chat(client, **fields)
    assert answer.status_code == 200
    return answer.headers["x-request-id"]


@contextmanager
def ledger(url: str) -> Iterator[Any]:
    with closing(open_database(url)) as database, database.read() as connection:
        yield connection


async def answers_as_vllm(request: faults.Request, to: faults.Connection) -> None:
    """vLLM's response id is the request id behind a prefix."""
    body = faults.WHOLE.replace(b'"chatcmpl-1"', b'"chatcmpl-%b"' % request.headers["x-request-id"].encode())
    await to.send(faults.response(200, body))


def test_an_outcome_right_after_its_answer_is_recorded_and_counted(ledger_url: str) -> None:
    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        for arm in PROBABILITY:
            for value in ("true", "false", "partly"):
                assert metric(client, f'pika_outcomes_total{{arm="{arm}",correct="{value}"}}') == 0
        answer = say(client, answered(client), True)
        assert answer.status_code == 200
        said = answer.json()
        assert said.pop("request_id")
        assert said.pop("success_probability") == pytest.approx(0.9)
        assert said == {"arm": "large", "source": "client", "correct": 1.0, "recorded": True}
        assert say(client, answered(client, model="small"), 0.25, source="judge").json()["correct"] == 0.25
        assert metric(client, 'pika_outcomes_total{arm="large",correct="true"}') == 1
        assert metric(client, 'pika_outcomes_total{arm="small",correct="partly"}') == 1
        assert metric(client, 'pika_brier{arm="large"}') == pytest.approx(0.01)
        assert metric(client, 'pika_calibration_outcomes{arm="medium"}') == 0
    with ledger(ledger_url) as connection:
        [row] = connection.execute(select(outcomes).where(outcomes.c.arm == "small"))
        assert (row.source, row.correct, row.path, row.propensity) == ("judge", 0.25, "pinned", 1)


def test_found_by_the_id_in_the_answer(ledger_url: str) -> None:
    with gateway({"small": [answers_as_vllm], "large": [faults.answers]}, ledger={"url": ledger_url}) as (client, _):
        like_vllm = chat(client, model="small", headers={"x-request-id": "mine-1"})
        assert like_vllm.json()["id"] == "chatcmpl-mine-1"
        assert say(client, "chatcmpl-mine-1", True).json()["request_id"] == "mine-1"
        first, second = (chat(client, model="large") for _ in range(2))
        assert first.json()["id"] == second.json()["id"] == "chatcmpl-1"
        # Where an upstream gives two answers one id, the latest is meant.
        assert say(client, "chatcmpl-1", True).json()["request_id"] == second.headers["x-request-id"]
        streamed = chat(client, model="large", stream=True)
        assert '"id":"c"' in streamed.text.replace(" ", "")
        assert say(client, "c", True).json()["request_id"] == streamed.headers["x-request-id"]


def test_the_same_again_changes_nothing_and_another_value_replaces(ledger_url: str) -> None:
    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        id_ = answered(client)
        told = [say(client, id_, value).json()["recorded"] for value in (True, True, 1, 0.5, 0.5)]
        assert told == [True, False, False, True, False]
        assert say(client, id_, 0.0, source="user-7").json()["recorded"]
        # Counters only rise: a value that replaces another counts once more.
        assert metric(client, "pika_outcomes_total") == 3
        assert metric(client, "pika_calibration_outcomes") == 2
    with ledger(ledger_url) as connection:
        rows = connection.execute(select(outcomes.c.source, outcomes.c.correct).order_by(outcomes.c.source)).all()
        assert [tuple(row) for row in rows] == [("client", 0.5), ("user-7", 0.0)]
        sums = connection.execute(select(rollups.c.span_s, rollups.c.outcomes, rollups.c.correct))
        assert {tuple(row) for row in sums} == {(60, 2, 0.5), (3600, 2, 0.5)}


def test_of_one_answer_no_more_sources_are_kept_than_it_says(ledger_url: str) -> None:
    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        id_, other = answered(client), answered(client)
        with ThreadPoolExecutor(16) as threads:
            said = list(threads.map(lambda i: say(client, id_, True, source=f"s{i}"), range(100)))
        taken = [one.json()["source"] for one in said if one.status_code == 200]
        refused = [one for one in said if one.status_code != 200]
        assert (len(taken), len(refused)) == (MAX_SOURCES, 100 - MAX_SOURCES)
        assert {(one.status_code, one.json()["error"]["code"]) for one in refused} == {(409, "too_many_sources")}
        assert f"{MAX_SOURCES} sources have spoken" in refused[0].json()["error"]["message"]
        # Those that are known may say the same again, or something else.
        assert not say(client, id_, True, source=taken[0]).json()["recorded"]
        assert say(client, id_, False, source=taken[-1]).json()["recorded"]
        assert say(client, other, True, source="s99").json()["recorded"]
    with ledger(ledger_url) as connection:
        rows = connection.execute(select(outcomes.c.request_id, func.count()).group_by(outcomes.c.request_id))
        assert {tuple(row) for row in rows} == {(id_, MAX_SOURCES), (other, 1)}
        sums = connection.execute(select(rollups.c.outcomes, rollups.c.correct).where(rollups.c.span_s == 60)).all()
        assert tuple(map(sum, zip(*sums, strict=True))) == (MAX_SOURCES + 1, MAX_SOURCES)


def test_a_known_miscalibration_is_what_the_gauges_say_also_after_a_restart(ledger_url: str) -> None:
    """The arms say .5, .7 and .9; right they are as often as is told here."""
    n, right = 60, {"small": 30, "medium": 15, "large": 50}

    def tell(client: httpx.Client, arm: str, i: int) -> None:
        assert say(client, answered(client, model=arm), i < right[arm]).json()["recorded"]

    def check(client: httpx.Client) -> None:
        for arm, p in PROBABILITY.items():
            share = right[arm] / n
            labels = f'{{arm="{arm}"}}'
            assert metric(client, "pika_calibration_outcomes" + labels) == n
            assert metric(client, "pika_brier" + labels) == pytest.approx(share * (1 - p) ** 2 + (1 - share) * p**2)
            assert metric(client, "pika_calibration_error" + labels) == pytest.approx(abs(share - p), abs=0.01)

    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda at: tell(client, *at), [(arm, i) for arm in right for i in range(n)]))
        check(client)
    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        check(client)
        assert metric(client, "pika_outcomes_total") == 0
    with gateway(ARMS, ledger={"url": ledger_url}, outcomes={"window": 50}) as (client, _):
        assert metric(client, 'pika_calibration_outcomes{arm="large"}') == 50
    with gateway(ARMS, ledger={"url": ledger_url}, outcomes={"hours": 1e-9}) as (client, _):
        assert metric(client, 'pika_calibration_outcomes{arm="large"}') == 0
        assert 'pika_calibration_error{arm="large"}' not in client.get("/metrics").text


def test_the_calibration_error_is_the_gap_between_said_and_seen() -> None:
    """Against bins of equal mass counted one by one; what chance adds to these gaps is small here, and taken off."""
    rng = np.random.default_rng(0)
    p = rng.uniform(0.05, 0.95, 1950)
    correct = (rng.random(len(p)) < np.clip(p - 0.15, 0, 1)).astype(float)
    order = np.argsort(p)
    plain = 0.0
    for rows in np.array_split(order, 15):
        plain += abs(float(np.mean(correct[rows])) - float(np.mean(p[rows]))) * len(rows) / len(p)
    assert calibration_error(p, correct) == pytest.approx(plain, abs=0.005)
    assert calibration_error(p, correct) == pytest.approx(0.15, abs=0.03)
    calibrated = (rng.random(len(p)) < p).astype(float)
    assert calibration_error(p, calibrated) < 0.02
    # A few outcomes of one probability: their plain gap, and no more.
    assert calibration_error(np.full(10, 0.9), np.array([0.0] * 5 + [1.0] * 5)) == pytest.approx(0.4, abs=0.02)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "id"),
        ({"id": None, "correct": True}, "id"),
        ({"id": 7, "correct": True}, "id"),
        ({"id": "", "correct": True}, "id"),
        ({"id": "a b", "correct": True}, "id"),
        ({"id": "a\x00b", "correct": True}, "id"),
        ({"id": "é", "correct": True}, "id"),
        ({"id": "x" * 2**20, "correct": True}, "id"),
        ({"id": ["a"], "correct": True}, "id"),
        ({"id": "a"}, "correct"),
        ({"id": "a", "correct": None}, "correct"),
        ({"id": "a", "correct": "yes"}, "correct"),
        ({"id": "a", "correct": 2}, "correct"),
        ({"id": "a", "correct": -0.001}, "correct"),
        ({"id": "a", "correct": 10**400}, "correct"),
        ({"id": "a", "correct": [1]}, "correct"),
        ({"id": "a", "correct": True, "source": ""}, "source"),
        ({"id": "a", "correct": True, "source": "a b"}, "source"),
        ({"id": "a", "correct": True, "source": "s" * 65}, "source"),
        ({"id": "a", "correct": True, "source": {"$ne": 1}}, "source"),
        ({"id": "a", "correct": True, "thumbs": "up"}, "thumbs"),
    ],
)
def test_what_is_malformed_is_refused_by_name(body: dict[str, Any], field: str, client: httpx.Client) -> None:
    answer = client.post("/v1/outcomes", json=body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)
    assert len(answer.content) < 1000


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"id":"a","correct":NaN}', b'{"id":"a","correct":1e400}', b"\xff"])
def test_what_is_no_json_object_is_refused(raw: bytes, client: httpx.Client) -> None:
    assert client.post("/v1/outcomes", content=raw).status_code == 400


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.sqlite"
    handlers = {"small": [faults.fails_with(500)], "large": [faults.answers]}
    with gateway(handlers, ledger={"url": url, "keep_days": 3}) as (client, _):
        yield client


def test_an_unknown_id_is_told_how_long_decisions_are_kept(client: httpx.Client) -> None:
    for id_ in ("never", "chatcmpl-never", "';DROP/**/TABLE/**/outcomes;--", "%", "x" * 256):
        answer = say(client, id_, True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "decision_not_found")
        assert "kept for 3 days (ledger.keep_days)" in answer.json()["error"]["message"]
    assert say(client, answered(client), True).status_code == 200


def test_what_was_not_answered_cannot_be_judged(client: httpx.Client) -> None:
    failed = chat(client, model="small")
    assert failed.status_code == 500
    answer = say(client, failed.headers["x-request-id"], False)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "not_answered")
    assert metric(client, 'pika_outcomes_total{arm="small"') == 0


def test_without_a_ledger_the_error_names_the_section() -> None:
    with gateway({"small": [faults.answers]}) as (client, _):
        answer = say(client, answered(client), True)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "ledger_off")
        assert "`ledger: {}`" in answer.json()["error"]["message"]
        assert 'pika_outcomes_total{arm="small",correct="true"} 0.0' in client.get("/metrics").text


def test_a_flood_of_unknown_ids_is_refused_at_once_and_bounded(client: httpx.Client) -> None:
    id_ = answered(client)

    async def flood() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=client.base_url, timeout=30, limits=limits) as many:
            posts = [many.post("/v1/outcomes", json={"id": f"flood-{i}", "correct": True}) for i in range(700)]
            asked = asyncio.create_task(asyncio.to_thread(chat, client))
            answers = await asyncio.gather(*posts)
            assert (await asked).status_code == 200
            return answers

    answers = asyncio.run(flood())
    statuses = Counter(answer.status_code for answer in answers)
    assert 404 in statuses
    assert set(statuses) <= {404, 503}
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} <= {"1"}
    assert say(client, id_, True).json()["recorded"]


def test_more_than_can_be_written_is_refused_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    with closing(open_database(url)) as database, closing(open_database(url)) as other:
        recorder = OutcomeRecorder(database, [("small", None)], Outcomes(), lambda arm, correct: None, Future)
        with other.write():  # so that nothing can be written meanwhile
            first = recorder.put(Outcome("first", "client", 1.0))
            until(lambda: recorder.waiting == 0, 5, "the first is being written")
            rest = [recorder.put(Outcome(f"{i}", "client", 1.0)) for i in range(MAX_WAITING)]
            with pytest.raises(OverloadedError):
                recorder.put(Outcome("one too many", "client", 1.0))
        assert [one.result(timeout=20) for one in (first, *rest)] == [None] * (MAX_WAITING + 1)
        recorder.close()
        with pytest.raises(LedgerAwayError):
            recorder.put(Outcome("too late", "client", 1.0))


def test_many_at_once_are_all_recorded(ledger_url: str) -> None:
    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        ids = [answered(client) for _ in range(100)]
        with ThreadPoolExecutor(32) as threads:
            # Each by three sources, each twice.
            posts = [threads.submit(say, client, id_, True, source=f"s{i % 3}") for i in range(6) for id_ in ids]
            told = [one.result().json()["recorded"] for one in posts]
        assert Counter(told) == {True: 300, False: 300}
        assert metric(client, "pika_outcomes_total") == 300
    with ledger(ledger_url) as connection:
        assert connection.execute(select(func.count()).select_from(outcomes)).scalar() == 300
        assert connection.execute(select(func.sum(rollups.c.outcomes)).where(rollups.c.span_s == 60)).scalar() == 300


def test_any_worker_takes_them_and_all_say_the_same_within_two_seconds(tmp_path: Path, ledger_url: str) -> None:
    with faults.running(faults.answers) as upstream, ExitStack() as stack:
        file = write_pool(tmp_path, {"large": [upstream.url]}, ledger={"url": ledger_url})
        base = stack.enter_context(served(file, None, "--workers", "2")).client.base_url
        # Held open, so that they spread over the workers.
        clients = [stack.enter_context(httpx.Client(base_url=base, timeout=20)) for _ in range(6)]
        ids = [answered(clients[i % 6]) for i in range(30)]
        for i, id_ in enumerate(ids[:-1]):
            assert say(clients[i % 5], id_, i < 6).json()["recorded"]
        for client in clients:  # they say what is so far
            metric(client, "pika_calibration_outcomes")
        assert say(clients[0], ids[-1], False).json()["recorded"]
        told_at = time.monotonic()
        for client in clients:
            while (asked_at := time.monotonic()) and metric(client, "pika_calibration_outcomes") != 30:
                assert asked_at < told_at + 2, "whoever asks later sees all of them"
                time.sleep(0.05)
            assert metric(client, "pika_outcomes_total") == 30
            assert metric(client, "pika_brier") == pytest.approx((6 * 0.5**2 + 24 * 0.5**2) / 30)


def test_while_postgresql_is_away_nothing_is_pretended(postgresql: PostgreSql) -> None:
    url = postgresql.make("ledger_away")
    with gateway(ARMS, ledger={"url": url}) as (client, _):
        id_ = answered(client)
        assert say(client, id_, True).json()["recorded"]
        before = metric(client, "pika_brier")
        postgresql.stop()
        try:
            answer = say(client, id_, False)
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger_unavailable")
            assert answer.headers["retry-after"] == "5"
            assert metric(client, "pika_brier") == before  # as last known
        finally:
            postgresql.start()
        until(lambda: say(client, id_, False).status_code == 200, 20, "the ledger is back")
        assert metric(client, "pika_outcomes_total") == 2


def test_a_file_that_was_deleted_takes_no_outcomes(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    with gateway(ARMS, ledger={"url": f"sqlite:///{file}"}) as (client, _):
        id_ = answered(client)
        assert say(client, id_, True).json()["recorded"]
        for one in tmp_path.glob("ledger.sqlite*"):
            one.unlink()
        assert say(client, id_, False).status_code == 503
        newer = answered(client)
        until(lambda: say(client, newer, True).status_code == 200, 20, "a new ledger is made")
        assert say(client, id_, False).status_code == 404


def test_while_another_process_holds_the_file_they_wait(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    with gateway(ARMS, ledger={"url": url}) as (client, _), closing(open_database(url)) as database:
        id_ = answered(client)
        assert say(client, id_, True).json()["recorded"]
        with database.write():
            waiting = threading.Thread(target=say, args=(client, id_, False))
            waiting.start()
            assert chat(client).status_code == 200
        waiting.join(timeout=20)
        assert not say(client, id_, False).json()["recorded"]


def test_what_retention_forgets_is_unknown(ledger_url: str) -> None:
    with gateway(ARMS, ledger={"url": ledger_url}) as (client, _):
        id_ = answered(client)
        assert say(client, id_, True).status_code == 200
    with gateway(ARMS, ledger={"url": ledger_url, "keep_days": 1e-9}) as (client, _):
        until(lambda: say(client, id_, False).status_code == 404, 20, "it is too old")
        assert metric(client, "pika_calibration_outcomes") == 0
    with ledger(ledger_url) as connection:
        assert connection.execute(select(outcomes)).all() == []


def test_a_key_speaks_of_its_own_requests_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    ann, ben = new_key(file, "ann"), new_key(file, "ben")
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.sqlite"}
    with gateway(ARMS, ledger=ledger, keys={"file": str(file)}) as (client, _):
        id_ = chat(client, headers=ann).headers["x-request-id"]
        body = {"id": id_, "correct": True}
        assert client.post("/v1/outcomes", json=body).status_code == 401
        other = client.post("/v1/outcomes", json=body, headers=ben)
        unknown = client.post("/v1/outcomes", json={**body, "id": "unknown"}, headers=ben)
        assert (other.status_code, unknown.status_code) == (404, 404)
        assert other.json()["error"]["message"].replace(id_, "unknown") == unknown.json()["error"]["message"]
        assert client.post("/v1/outcomes", json=body, headers=ann).json()["recorded"]


def test_audits_tell_every_arms_accuracy(tmp_path: Path) -> None:
    ledger = {"url": f"sqlite:///{tmp_path}/ledger.sqlite"}
    with gateway(ARMS, ledger=ledger, audit={"share": 1}) as (client, _):
        answers = [chat(client).headers for _ in range(180)]
        arms: dict[str, list[bool]] = {arm: [] for arm in ARMS}
        for answer in answers:
            right = len(arms[answer["x-pika-arm"]]) % 4 > 0
            assert say(client, answer["x-request-id"], right).json()["recorded"]
            arms[answer["x-pika-arm"]].append(right)
        for arm, told in arms.items():
            low, value, high = (
                metric(client, f'pika_audited_accuracy{end}{{arm="{arm}"}}') for end in ("_low", "", "_high")
            )
            assert value == pytest.approx(np.mean(told))
            assert low < value < high
    with gateway(ARMS, ledger=ledger) as (client, _):
        pinned = [answered(client, model="small") for _ in range(40)]
        before = metric(client, 'pika_audited_accuracy{arm="small"}')
        assert all(say(client, id_, False).json()["recorded"] for id_ in pinned)
        assert metric(client, 'pika_audited_accuracy{arm="small"}') == before
