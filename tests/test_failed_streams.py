"""A stream that fails ends with an error event and a closed connection, and nobody's next request meets that end."""

import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import aiohttp
import httpx
import openai
import pytest

from server.http.connection import Connection
from server.upstream import breaker
from tests.support import upstream as faults
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway

BODY = {"model": "auto", "messages": MESSAGES}
STREAM = {**BODY, "stream": True}
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"
HEALTHY = b'{"status":"ok"}'
TIMES = 20


async def fails_where_it_streams(request: faults.Request, to: faults.Connection) -> None:
    await (faults.drops_in_mid_stream if request.body.get("stream") else faults.answers)(request, to)


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with pytest.MonkeyPatch.context() as patch, gateway({"small": [fails_where_it_streams]}) as (client, _):
        patch.setattr(breaker, "MIN_EXCHANGES", 10**6)  # half of the exchanges fail, and nobody else could answer
        yield client


def is_error(event: bytes | str) -> bool:
    text = event.decode() if isinstance(event, bytes) else event
    return "error" in json.loads(text.strip().removeprefix("data: "))


def ask_for_a_stream(client: httpx.Client) -> socket.socket:
    raw = socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=10)
    body = json.dumps(STREAM).encode()
    raw.sendall(b"POST %b HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % (PATH.encode(), len(body)) + body)
    return raw


def read_stream(raw: socket.socket) -> None:
    answer = b""
    while not answer.endswith(b"\r\n0\r\n\r\n"):
        answer += raw.recv(65536)


def test_the_connection_closes_after_the_error_event(client: httpx.Client) -> None:
    with ask_for_a_stream(client) as raw:
        answer = raw.makefile("rb").read()
    assert answer.endswith(b"\r\n0\r\n\r\n")
    assert is_error(answer.split(b"\r\n")[-4])


def test_what_is_asked_at_once_is_answered_on_a_last_answer(client: httpx.Client) -> None:
    with ask_for_a_stream(client) as raw:
        read_stream(raw)
        raw.sendall(HEALTH)
        answer = raw.makefile("rb").read()
    assert b"\r\nconnection: close\r\n" in answer
    assert answer.endswith(HEALTHY)


def test_what_is_asked_in_the_last_moment_is_answered(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    too_slow = Connection._too_slow
    asked = threading.Event()

    def asked_by_then(self: Connection) -> None:
        if self.client == raw.getsockname() and not asked.is_set():
            raw.sendall(HEALTH)
            asked.set()
        too_slow(self)

    monkeypatch.setattr(Connection, "_too_slow", asked_by_then)
    with ask_for_a_stream(client) as raw:
        read_stream(raw)
        assert asked.wait(10)
        assert raw.makefile("rb").read().endswith(HEALTHY)


def test_httpx_goes_on(client: httpx.Client) -> None:
    for _ in range(TIMES):
        assert is_error(chat(client, stream=True).text.split("\n\n")[-2])
        assert chat(client).status_code == 200


@pytest.mark.anyio
async def test_httpx_goes_on_asynchronously(client: httpx.Client) -> None:
    async with httpx.AsyncClient(base_url=client.base_url, timeout=20) as one:
        for _ in range(TIMES):
            assert is_error((await one.post(PATH, json=STREAM)).text.split("\n\n")[-2])
            assert (await one.post(PATH, json=BODY)).status_code == 200


@pytest.mark.anyio
async def test_aiohttp_goes_on(client: httpx.Client) -> None:
    async with aiohttp.ClientSession(str(client.base_url)) as session:
        for _ in range(TIMES):
            async with session.post(PATH, json=STREAM) as answer:
                events = [line async for line in answer.content if line.strip()]
            assert is_error(events[-1])
            async with session.post(PATH, json=BODY) as answer:
                assert answer.status == 200
                await answer.read()


def test_openai_goes_on(client: httpx.Client) -> None:
    asking: Any = openai.OpenAI(base_url=str(client.base_url.join("/v1")), api_key="none", max_retries=0)
    with asking:
        for _ in range(TIMES):
            with pytest.raises(openai.APIError, match="mid-stream"):
                list(asking.chat.completions.create(**STREAM))
            assert asking.chat.completions.create(**BODY).choices[0].message.content == "hi"
