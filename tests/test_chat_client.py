"""Endpoints that are busy, slow, broken or away, on real sockets."""

import asyncio
import socket
import threading
from argparse import ArgumentTypeError
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, TypeVar

import pytest

from offline import chat_client
from offline.chat_client import ChatClient, RefusedError, UnavailableError
from offline.options import seconds
from tests.support.upstream import (
    ANSWER,
    Connection,
    Handler,
    Request,
    answers,
    drops_after_head,
    drops_at_once,
    fails_with,
    hangs,
    response,
    running,
)

T = TypeVar("T")
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def in_turn(*handlers: Handler) -> Handler:
    """The first request is the first handler's, and so on; the last one takes all that follow."""
    waiting = list(handlers)

    async def handler(request: Request, to: Connection) -> None:
        await (waiting.pop(0) if len(waiting) > 1 else waiting[0])(request, to)

    return handler


async def says_nothing(_: Request, to: Connection) -> None:
    await to.send(response(200, b"well"))


def talk(
    *urls: str,
    say: Callable[[ChatClient], Coroutine[Any, Any, T]] = lambda client: client.complete(BODY),
    timeout_s: float = 20,
    patience_s: float = 20,
) -> T:
    async def all_of_it() -> T:
        async with ChatClient(urls, ["key"] * len(urls), timeout_s, patience_s) as client:
            return await say(client)

    return asyncio.run(all_of_it())


async def many(client: ChatClient, n: int) -> None:
    """So many requests at a time."""
    assert await asyncio.gather(*(client.complete(BODY) for _ in range(n))) == [ANSWER] * n


@pytest.fixture
def away() -> str:
    """A URL where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Backoff that a test need not wait for."""
    monkeypatch.setattr(chat_client, "FIRST_BACKOFF_S", 0.01)


AN_HOUR_AGO = format_datetime(datetime.now(UTC) - timedelta(hours=1), usegmt=True)


@pytest.mark.parametrize(
    "fault",
    [
        fails_with(429, "retry-after: 0.1"),
        fails_with(503, f"retry-after: {AN_HOUR_AGO}"),
        fails_with(503, "retry-after: soon"),
        fails_with(500),
        fails_with(408),
        drops_at_once,
        drops_after_head,
        hangs,
        says_nothing,
    ],
)
def test_a_fault_that_passes_is_survived(quick: None, fault: Handler) -> None:
    with running(in_turn(fault, fault, answers)) as upstream:
        assert talk(upstream.url, timeout_s=0.5) == ANSWER
    assert [request.body for request in upstream.requests] == [BODY] * 3
    assert {request.headers["authorization"] for request in upstream.requests} == {"Bearer key"}


def test_what_retry_after_asks_for_is_waited_beyond_all_patience(quick: None) -> None:
    with running(in_turn(fails_with(429, "retry-after: 1"), fails_with(429, "retry-after: 1"), answers)) as upstream:
        assert talk(upstream.url, patience_s=0.5) == ANSWER
    assert len(upstream.requests) == 3


def test_an_absurd_retry_after_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "MAX_RETRY_AFTER_S", 0.1)
    with running(in_turn(fails_with(503, "retry-after: 1e12"), answers)) as upstream:
        assert talk(upstream.url) == ANSWER


def test_patience_ends(quick: None) -> None:
    says = r"/v1 answers 503: no, for \d+ s now"
    with running(fails_with(503)) as upstream, pytest.raises(UnavailableError, match=says):
        talk(upstream.url, patience_s=0.3)
    assert len(upstream.requests) > 2


def test_a_request_that_breaks_every_server_is_given_up(quick: None) -> None:
    async def poisoned(request: Request, to: Connection) -> None:
        await (drops_at_once if request.body["model"] == "poison" else answers)(request, to)

    async def with_others(client: ChatClient) -> None:
        poison = asyncio.create_task(client.complete({**BODY, "model": "poison"}))
        while not poison.done():  # success in between gives this one no more attempts
            await many(client, 1)
        await poison

    with running(poisoned) as upstream, pytest.raises(UnavailableError, match="and 5 attempts were in vain"):
        talk(upstream.url, say=with_others)
    assert sum(request.body["model"] == "poison" for request in upstream.requests) == 5


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_is_final(status: int) -> None:
    says = f"/v1 answers {status}: no"
    with running(fails_with(status)) as upstream, pytest.raises(RefusedError, match=says) as refused:
        talk(upstream.url)
    assert refused.value.status == status
    assert len(upstream.requests) == 1


def test_an_answer_without_end_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_client, "MAX_ANSWER_BYTES", 1000)

    async def floods(_: Request, to: Connection) -> None:
        await to.send(response(200, b"x" * 2000))

    with running(floods) as upstream, pytest.raises(RefusedError, match="an answer of more than 1000 bytes"):
        talk(upstream.url)
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "soon", ""])
def test_seconds_that_are_none(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="are no seconds: a finite number above 0"):
        seconds(text)


def test_a_replica_that_is_away_is_left_out_with_one_warning(away: str, caplog: pytest.LogCaptureFixture) -> None:
    async def checked(client: ChatClient) -> None:
        await client.check()
        await many(client, 20)

    with running(in_turn(fails_with(404), answers)) as upstream:
        talk(away, upstream.url, say=checked)
    [warning] = caplog.messages
    assert warning.startswith(f"{away} does not answer")


def test_a_replica_that_comes_back_is_used_again(quick: None, caplog: pytest.LogCaptureFixture) -> None:
    with running(in_turn(drops_at_once, fails_with(500), answers)) as shaky, running(answers) as steady:

        async def until_it_is_back(client: ChatClient) -> None:
            while len(shaky.requests) < 10:
                await many(client, 4)

        talk(shaky.url, steady.url, say=until_it_is_back)
    assert steady.requests
    assert len(caplog.messages) == 1


def test_who_has_fewest_in_flight_is_asked() -> None:
    enough = threading.Event()

    async def counts(request: Request, to: Connection) -> None:
        if len(to.upstream.requests) == 9:
            enough.set()
        await answers(request, to)

    async def waits(request: Request, to: Connection) -> None:
        await asyncio.to_thread(enough.wait, 30)
        await answers(request, to)

    async def one_by_one(client: ChatClient) -> None:
        first = asyncio.create_task(client.complete(BODY))
        await asyncio.sleep(0)  # it has gone to the first replica, where it stays
        for _ in range(9):
            await many(client, 1)
        await first

    with running(waits) as slow, running(counts) as fast:
        talk(slow.url, fast.url, say=one_by_one)
    assert (len(slow.requests), len(fast.requests)) == (1, 9)


def test_a_replica_that_hangs_holds_few_requests(quick: None) -> None:
    async def in_rounds(client: ChatClient) -> None:
        for _ in range(5):
            await many(client, 8)

    with running(hangs) as hanging, running(answers) as steady:
        talk(hanging.url, steady.url, say=in_rounds, timeout_s=0.3)
    # Four of the first eight, while it was thought well; then a single one at a time to try it.
    assert 4 <= len(hanging.requests) < 12


def test_the_environments_proxy_is_asked_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    async def checked(client: ChatClient) -> Any:
        await client.check()
        return await client.complete(BODY)

    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with running(in_turn(fails_with(404), answers)) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        assert talk("http://models.invalid/v1", say=checked) == ANSWER
    there = "http://models.invalid/v1"
    assert [request.path for request in proxy.requests] == [f"{there}/models", f"{there}/chat/completions"]


def test_nobody_there_is_said_at_once(away: str) -> None:
    with pytest.raises(UnavailableError, match=f"{away} does not answer .*; {away} does not answer"):
        talk(away, away, say=ChatClient.check)
