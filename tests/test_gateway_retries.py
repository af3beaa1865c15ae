"""Retries are bounded and cost what they should; what fails is found out, and welcomed back with few requests."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from server.app import create_app
from server.upstream import breaker, health
from server.upstream.breaker import IN_A_ROW
from server.upstream.retry_budget import FLOOR
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.processes import until
from tests.support.upstream import CHUNK, EVENTS, Connection, Request, chunk

OPEN = "pika_breaker_open"
STREAM = {"model": "auto", "stream": True, "messages": MESSAGES}


@contextmanager
def some_stopped(
    monkeypatch: pytest.MonkeyPatch, pool: dict[str, int], stopped: str, count: int
) -> Iterator[httpx.Client]:
    """A gateway whose upstreams all answered when it started, `count` of which no longer listen.

    Args:
        pool: how many replicas each arm has.
        stopped: the arm of those that are gone.
    """
    monkeypatch.setattr(health, "HEALTH_INTERVAL_S", 60.0)  # requests find it out, not health checks
    with ExitStack() as stack, ExitStack() as going:
        urls = {
            name: [
                (going if name == stopped and i < count else stack).enter_context(faults.running(faults.answers)).url
                for i in range(replicas)
            ]
            for name, replicas in pool.items()
        }
        base = stack.enter_context(serving(create_app(constant_pool(urls))))
        going.close()
        yield stack.enter_context(httpx.Client(base_url=base, timeout=20))


def test_retries_are_ten_and_a_tenth_of_the_requests() -> None:
    # A 429 opens no breaker: it is the budget alone that ends the retries.
    with gateway({"small": [faults.answers], "large": [faults.fails_with(429)]}) as (client, upstreams):
        seen = [(one.status_code, one.headers["x-pika-attempts"]) for one in (chat(client) for _ in range(60))]
        assert set(seen) == {(200, "2"), (429, "1")}
        assert FLOOR < seen.count((200, "2")) <= FLOOR + 60 // 10
        assert seen.count((200, "2")) == len(upstreams[0].requests)
        assert len(upstreams[1].requests) == 60


def test_connect_errors_cost_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    with some_stopped(monkeypatch, {"small": 1, "large": 3}, "large", 3) as client:
        for _ in range(IN_A_ROW):  # then the breakers are open
            answer = chat(client)
            assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, "small")
            assert answer.headers["x-pika-attempts"] == "4"
        assert IN_A_ROW * 3 > FLOOR + IN_A_ROW / 10, "or the budget would have sufficed"


def test_a_replica_that_has_just_stopped_is_passed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with some_stopped(monkeypatch, {"small": 2}, "small", 1) as client:
        for stream in (False, True):
            answer = chat(client, stream=stream)
            assert (answer.status_code, answer.headers["x-pika-attempts"]) == (200, "2")
            assert answer.headers["x-pika-path"] == "routed"
        assert metric(client, "pika_replica_up") == 2, "no health check has found it"


def test_what_a_health_check_finds_back_gets_few_requests_at_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "HEALTH_INTERVAL_S", 0.5)
    with gateway({"small": [faults.answers, faults.answers]}) as (client, upstreams):
        upstreams[0].health = 503
        until(lambda: metric(client, "pika_replica_up") == 1, 10, "the health check notices")
        upstreams[0].health = 200
        until(lambda: metric(client, "pika_replica_up") == 2, 10, "the health check notices again")
        assert few_of_twenty(client, upstreams[0])


def test_what_its_breaker_welcomes_back_gets_few_requests_at_first() -> None:
    healthy = False

    async def handler(request: Request, to: Connection) -> None:
        await (faults.answers if healthy else faults.fails_with(500))(request, to)

    with gateway({"small": [handler, faults.answers]}) as (client, upstreams):
        for _ in range(2 * IN_A_ROW):
            assert chat(client).status_code == 200
        assert metric(client, OPEN) == 1
        healthy = True
        until(lambda: chat(client).status_code == 200 and metric(client, OPEN) == 0, 20, "it is tried again")
        assert few_of_twenty(client, upstreams[0])


def few_of_twenty(client: httpx.Client, upstream: faults.Upstream) -> bool:
    """Whether far less than its half of twenty requests goes there."""
    before = len(upstream.requests)
    for _ in range(20):
        assert chat(client).status_code == 200
    return len(upstream.requests) - before < 5


def test_a_replica_that_breaks_its_streams_is_left_alone() -> None:
    with gateway({"small": [faults.drops_in_mid_stream, faults.answers]}) as (client, upstreams):
        while metric(client, OPEN) == 0:
            assert len(upstreams[0].requests) < breaker.MIN_EXCHANGES
            assert chat(client, stream=True).status_code == 200


def test_a_first_byte_ends_the_waiting_and_a_later_failure_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "MIN_EXCHANGES", 1)

    async def handler(request: Request, to: Connection) -> None:
        if len(to.upstream.requests) > 1:
            await to.send(EVENTS + chunk(CHUNK))
            await to.upstream.go_on.wait()
        to.writer.transport.abort()

    with gateway({"small": [handler]}) as (client, upstreams):

        def breaks_off() -> bool:
            with client.stream("POST", PATH, json=STREAM) as answer:
                if answer.status_code == 503:
                    return False
                assert metric(client, OPEN) == 0, "the stream that was let through goes on"
                upstreams[0].let_go_on()
                return b"".join(answer.iter_raw()).startswith(CHUNK)

        assert chat(client).status_code == 502
        assert metric(client, OPEN) == 1
        until(breaks_off, 20, "the breaker lets a request through")
        assert metric(client, OPEN) == 1


def test_clients_that_leave_say_nothing_of_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "MIN_EXCHANGES", 1)
    with gateway({"small": [faults.streams_on]}) as (client, upstreams):
        with client.stream("POST", PATH, json=STREAM) as answer:
            assert next(answer.iter_raw()).startswith(CHUNK)
        assert upstreams[0].left.wait(5)
        assert metric(client, OPEN) == 0
