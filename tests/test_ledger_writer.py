"""The writer on real databases: what is put is read again, with its sums; what is wrong is dropped alone."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, func, select, text, update

from server.ledger import writer as writer_module
from server.ledger.database import Database, LedgerError, open_database, parse_url
from server.ledger.insert import response_id
from server.ledger.reader import read_decisions, read_pools
from server.ledger.retention import SLICE_ROWS, Keep
from server.ledger.tables import decisions, outcomes
from server.ledger.tables import rollups as rollups_table
from server.ledger.writer import Writer
from tests.support.ledger import POOL, decision, many, read_rollups
from tests.support.processes import until


@contextmanager
def writing(url: str, **options: Any) -> Iterator[Writer]:
    """Closed at the end, so that all is written."""
    writer = Writer(Database(parse_url(url)), POOL, **options)
    try:
        yield writer
    finally:
        writer.close()


def test_what_is_put_is_read_again(ledger_url: str) -> None:
    at = time.time() // 3600 * 3600 + 1
    with writing(ledger_url) as writer:
        writer.put(decision("a", at=at, flags=("infeasible", "out-of-distribution"), stream=True))
        writer.put(decision("b", at=at, arm=0, policy_arm=2, path="audit", propensity=0.25, percentile=None))
        writer.put(decision("c", at=at, code=502, input_tokens=None, output_tokens=None))
    database = open_database(ledger_url)
    read = read_decisions(database)
    assert (read.pool.arms, read.pool.prices) == (POOL.arms, [list(prices) for prices in POOL.prices])
    assert read.at.tolist() == [at] * 3
    assert read.arm.tolist() == [1, 0, 1]
    assert read.policy_arm.tolist() == [1, 2, 1]
    assert read.path.tolist() == ["routed", "audit", "routed"]
    assert read.propensity.tolist() == [1, 0.25, 1]
    assert read.code.tolist() == [200, 200, 502]
    assert read.allowed.all()
    np.testing.assert_allclose(read.success, [[0.5, 0.7, np.nan]] * 3, rtol=1e-6)
    np.testing.assert_allclose(read.cost, [[1e-5, 1e-4, 1e-3]] * 3, rtol=1e-6)
    np.testing.assert_allclose(read.cost_usd, [(11 * 1 + 7 * 4) / 1e6, (11 * 0.1 + 7 * 0.4) / 1e6, np.nan])
    np.testing.assert_array_equal(read.percentile, [42, np.nan, 42])
    np.testing.assert_array_equal(read.outcome, [np.nan] * 3)
    with database.read() as connection:
        rows = connection.execute(select(decisions).order_by(decisions.c.id)).all()
    assert [row.flags for row in rows] == ["infeasible,out-of-distribution", "", ""]
    assert [row.stream for row in rows] == [True, False, False]
    assert [row.routing_ms for row in rows] == pytest.approx([0.2] * 3)
    database.close()


@pytest.mark.parametrize("span_s", [60, 3600])
def test_sums_are_those_of_the_decisions(ledger_url: str, span_s: int) -> None:
    at = time.time() // 3600 * 3600
    rows = [
        decision(f"{i}", at=at + 10 * i, arm=i % 2, code=200 if i % 7 else 500, input_tokens=i, output_tokens=2 * i)
        for i in range(100)
    ]
    with writing(ledger_url) as one, writing(ledger_url) as other:
        for i, row in enumerate(rows):
            (one if i % 3 else other).put(row)
    database = open_database(ledger_url)
    pools, read = read_rollups(database, at, span_s=span_s)
    assert len(pools) == 1
    assert {rollup.key.bucket for rollup in read} == {int(row.at // span_s) * span_s for row in rows}
    answered = [row for row in rows if row.code == 200]
    assert sum(rollup.sums.requests for rollup in read) == 100
    assert sum(rollup.sums.errors for rollup in read) == 100 - len(answered)
    assert sum(rollup.sums.expected_correct for rollup in read) == pytest.approx(
        sum(row.success[row.arm] for row in answered)
    )
    always = np.sum([rollup.always_usd for rollup in read], axis=0)
    expected = np.zeros(3)
    for row in answered:
        assert row.input_tokens is not None
        for arm, (price_in, price_out) in enumerate(POOL.prices):
            tokens = row.output_tokens if arm == row.arm else POOL.mean_tokens[arm][1]
            assert tokens is not None
            expected[arm] += (row.input_tokens * price_in + tokens * price_out) / 1e6
    np.testing.assert_allclose(always, expected)
    database.close()


def test_of_requests_with_one_id_the_last_stands_and_all_are_summed_up(ledger_url: str) -> None:
    with writing(ledger_url) as writer:
        writer.put(decision("twice", code=502))
        writer.put(decision("twice", code=200, arm=2))
        writer.submit(lambda connection: None).result(10)
        writer.put(decision("twice", code=499, arm=0))
    database = open_database(ledger_url)
    read = read_decisions(database)
    assert (read.arm.tolist(), read.code.tolist()) == ([0], [499])
    _, sums = read_rollups(database, 0)
    assert sum(rollup.sums.requests for rollup in sums) == 3
    database.close()


def test_who_waits_has_it_written_at_once(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.ledger.writer.GATHER_S", 3600)
    with writing(ledger_url) as writer:
        writer.put(decision("a"))
        writer.flush().result(30)
        database = open_database(ledger_url)
        assert len(read_decisions(database).at) == 1
        database.close()


def test_work_sees_what_was_put_before_it_and_fails_alone(ledger_url: str) -> None:
    def break_off(connection: Connection) -> None:
        connection.execute(update(decisions).values(code=1))
        raise ValueError("no")

    with writing(ledger_url) as writer:
        for row in many(3):
            writer.put(row)
        before, broken, twice = writer.submit(count), writer.submit(break_off), writer.submit(insert_twice)
        after = writer.submit(count)
        assert before.result(10) == after.result(10) == 3
        with pytest.raises(ValueError, match="no"):
            broken.result(10)
        with pytest.raises(Exception, match=r"(?i)unique"):
            twice.result(10)
        assert writer.problem is None
    database = open_database(ledger_url)
    assert read_decisions(database).code.tolist() == [200] * 3
    database.close()


OUTCOME = {
    "request_id": "a", "source": "client", "correct": 1, "pool": 1, "arm": "medium", "path": "routed", "propensity": 1,
}  # fmt: skip


def insert_twice(connection: Connection) -> None:
    for _ in range(2):
        connection.execute(outcomes.insert(), [OUTCOME | {"at": time.time()}])


def test_outcomes_are_joined_and_averaged_over_their_sources(ledger_url: str) -> None:
    def tell(connection: Connection) -> None:
        for request_id, source, correct in (
            ("a", "client", 1),
            ("c", "client", 0),
            ("c", "judge", 1),
            ("gone", "x", 1),
        ):
            told = OUTCOME | {"at": time.time(), "request_id": request_id, "source": source, "correct": correct}
            connection.execute(outcomes.insert(), [told])

    with writing(ledger_url) as writer:
        for name in "abc":
            writer.put(decision(name))
        writer.submit(tell).result(10)
    database = open_database(ledger_url)
    np.testing.assert_array_equal(read_decisions(database).outcome, [1, np.nan, 0.5])
    np.testing.assert_array_equal(read_decisions(database, limit=2).outcome, [np.nan, 0.5])
    database.close()


def test_a_record_that_does_not_fit_is_lost_alone_and_counted(ledger_url: str) -> None:
    lost: list[None] = []
    with writing(ledger_url, on_drop=lambda: lost.append(None)) as writer:
        for row in (decision("a"), decision("b", code=10**30), decision("c", policy=None), decision("d")):
            writer.put(row)
    database = open_database(ledger_url)
    with database.read() as connection:
        assert connection.execute(select(decisions.c.request_id).order_by(decisions.c.id)).scalars().all() == ["a", "d"]
    assert len(lost) == 2
    _, sums = read_rollups(database, 0)
    assert sum(rollup.sums.requests for rollup in sums) == 2
    database.close()


def test_hostile_prompts_are_kept_as_text(ledger_url: str) -> None:
    long = "x" * 10**6
    prompts = [
        "'); DROP TABLE decisions; --",
        "\0\x01\x1b[31m",
        "\ud800 half a pair",
        "<script>alert(1)</script>",
        long,
    ]
    with writing(ledger_url) as writer:
        for i, prompt in enumerate(prompts):
            writer.put(decision(str(i), prompt=prompt))
    database = open_database(ledger_url)
    with database.read() as connection:
        kept = connection.execute(select(decisions.c.prompt).order_by(decisions.c.id)).scalars().all()
    assert kept == [prompts[0], "\x01\x1b[31m", "? half a pair", prompts[3], long]
    database.close()


@pytest.mark.parametrize(("prompt", "bound"), [(None, "MAX_WAITING"), ("hello", "MAX_WAITING_PROMPTS")])
def test_a_full_queue_drops_and_counts(
    prompt: str | None, bound: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, bound, 10)
    lost: list[None] = []
    with writing(f"sqlite:///{tmp_path}/gone/ledger.sqlite", on_drop=lambda: lost.append(None)) as writer:
        writer.opened.wait(10)
        assert writer.problem is not None
        assert "there is no folder" in writer.problem
        for row in many(30, prompt=prompt):
            writer.put(row)
        assert 30 - 2 * 10 <= len(lost) <= 20, "some may have been taken from the queue already"
        with pytest.raises(LedgerError, match="there is no folder"):
            writer.submit(lambda connection: None).result(10)
        (tmp_path / "gone").mkdir()
        until(lambda: writer.problem is None, 20, "it is written again")
        kept = 30 - len(lost)
    database = open_database(f"sqlite:///{tmp_path}/gone/ledger.sqlite")
    assert len(read_decisions(database)) == kept
    assert len(lost) == 30 - kept, "what waited is not lost"
    database.close()


def test_the_oldest_go_and_the_newest_stay(ledger_url: str) -> None:
    now = time.time()
    old = [decision(f"old{i}", at=now - 40 * 24 * 3600) for i in range(SLICE_ROWS + 10)]
    with writing(ledger_url) as writer:
        for row in [*old, *many(300, at=now)]:
            writer.put(row)
    with writing(ledger_url, keep=Keep(days=30, decisions=100)):
        database = open_database(ledger_url)
        until(lambda: len(read_decisions(database)) == 100, 20, "a hundred are left")
        _, sums = read_rollups(database, now - 50 * 24 * 3600)
        assert sum(rollup.sums.requests for rollup in sums) == SLICE_ROWS + 310, "sums outlive what they are of"
        minutes = select(func.min(rollups_table.c.bucket)).where(rollups_table.c.span_s == 60)
        with database.read() as connection:
            assert connection.execute(minutes).scalar_one() > now - 3600, "but for old ones by minute"
        database.close()


def count(connection: Connection) -> int:
    return connection.execute(select(func.count()).select_from(decisions)).scalar_one()


def test_so_many_are_kept_however_fast_they_come(ledger_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.ledger.retention.SLICE_ROWS", 50)
    monkeypatch.setattr(writer_module, "SLICE_ROWS", 50)
    monkeypatch.setattr(writer_module, "MAX_BATCH", 200)
    keep = Keep(decisions=100)
    with writing(ledger_url, keep=keep) as one, writing(ledger_url, keep=keep) as other:
        for i in range(8):
            for j in range(600):
                (one, other)[j % 2].put(decision(f"{i}-{j}"))
            other.flush().result(30)
            written = one.submit(count).result(30)
            assert 100 <= written <= 100 + 2 * (200 + 200), "of each writer one batch, and what it waits with"


def test_a_file_shrinks_when_much_is_deleted(tmp_path: Any) -> None:
    file = tmp_path / "ledger.sqlite"
    with writing(f"sqlite:///{file}") as writer:
        for i in range(3):
            for j in range(1000):
                writer.put(decision(f"{i}-{j}", prompt="x" * 8192))
            writer.flush().result(30)
    large = file.stat().st_size
    assert large > 3000 * 8192
    with writing(f"sqlite:///{file}", keep=Keep(decisions=100)) as writer:
        until(lambda: file.stat().st_size < large / 2, 20, "most of it is given back")
        assert writer.problem is None
    assert file.stat().st_size < large / 4


def test_a_clock_that_goes_back_loses_nothing(ledger_url: str) -> None:
    now = time.time()
    for clock in (now, now - 10 * 24 * 3600, 0.0):
        with writing(ledger_url, clock=lambda clock=clock: clock) as writer:
            for row in many(3, at=clock):
                row.request_id = f"{clock}{row.request_id}"
                writer.put(row)
    database = open_database(ledger_url)
    assert len(read_decisions(database)) == 9
    assert len(read_decisions(database, since=now - 60)) == 3
    database.close()


def test_a_pool_is_kept_once_and_decisions_among_the_same_arms_are_read_together(ledger_url: str) -> None:
    cheaper = POOL.__class__(POOL.arms, [(0.1, 0.1)] * 3, POOL.mean_tokens, POOL.probes, POOL.policy)
    other = POOL.__class__(["a", "b", "c"], POOL.prices, POOL.mean_tokens, POOL.probes, POOL.policy)
    database = open_database(ledger_url)
    for i, pool in enumerate((POOL, other, POOL, cheaper)):
        writer = Writer(Database(parse_url(ledger_url)), pool)
        writer.put(decision(str(i)))
        writer.close()
    pools = read_pools(database)
    assert [len(pools), pools[0].arms, pools[1].arms] == [3, POOL.arms, ["a", "b", "c"]]
    assert len(read_decisions(database)) == 3
    assert len(read_decisions(database, pool=pools[1].id)) == 1
    with pytest.raises(LedgerError, match="has no pool 17"):
        read_decisions(database, pool=17)
    database.close()


def test_a_writer_that_waits_for_a_lock_says_so_and_goes_on(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "STALLED_S", 0.2)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    holder = open_database(url)
    with writing(url) as writer:
        writer.opened.wait(10)
        with holder.write() as connection:
            connection.execute(text("SELECT 1"))
            writer.put(decision("a"))
            until(lambda: "has not answered" in (writer.problem or ""), 20, "it says that it waits")
            until(lambda: "locked by another process" in (writer.problem or ""), 20, "and why")
        until(lambda: writer.problem is None, 20, "it is written again")
    assert len(read_decisions(holder)) == 1
    holder.close()


def test_requests_never_wait_for_a_database_that_hangs(tmp_path: Any) -> None:
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    holder = open_database(url)
    writer = Writer(Database(parse_url(url)), POOL)
    writer.opened.wait(10)
    with holder.write():
        putting = threading.Thread(target=lambda: [writer.put(row) for row in many(5000)])
        putting.start()
        putting.join(5)
        assert not putting.is_alive()
    writer.close(20)
    assert len(read_decisions(holder)) == 5000
    holder.close()


@pytest.mark.parametrize(
    ("beginning", "kept"),
    [
        (b'{"id":"chatcmpl-abc","object":"chat.completion"', None),
        (b'data: {"id":"chatcmpl-abc","object"', None),
        (b'{"id": "chatcmpl-7f", "object"', "chatcmpl-7f"),
        (b'{"object": "x", "id": "resp_1"', "resp_1"),
        (b'{"id":"<script>"', None),
        (b'{"id":"cut', None),
        (b"", None),
    ],
)
def test_an_answers_id_is_read_from_its_first_bytes(beginning: bytes, kept: str | None) -> None:
    """vLLM's is the request id behind a prefix and need not be kept."""
    assert response_id(beginning, "abc") == kept
