"""Streams of other kinds than a chat's: they pass as they come, whoever asks for them and whatever they hold."""

import asyncio
from typing import Any

import httpx
import pytest

from tests.support import upstream as faults
from tests.support.broken_http import broken_json
from tests.support.gateway_client import chat, gateway, metric
from tests.support.upstream import CHUNK, LAST, WHOLE, Connection, Handler, Request, chunk

SPEECH = "/v1/audio/speech"
TRANSCRIPTIONS = "/v1/audio/transcriptions"
FORM = {"files": {"file": ("a.wav", b"sound")}}
SOUND = bytes(range(256))
SAY: dict[str, Any] = {"json": {"model": "small", "input": "a", "stream": True}}


def head(content_type: str) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()


def in_two_parts(content_type: str, first: bytes, last: bytes) -> Handler:
    """The second not before it may go on."""

    async def handler(_: Request, to: Connection) -> None:
        await to.send(head(content_type) + chunk(first))
        await to.upstream.go_on.wait()
        await to.send(chunk(last) + b"0\r\n\r\n")

    return handler


def transcribe(**fields: str) -> dict[str, Any]:
    return {**FORM, "data": {"model": "small", **fields}}


@pytest.mark.parametrize(
    ("path", "asked", "content_type", "first", "last"),
    [
        pytest.param(TRANSCRIPTIONS, transcribe(stream="true"), "text/event-stream", CHUNK, LAST, id="form"),
        pytest.param(TRANSCRIPTIONS, transcribe(stream="True"), "text/plain", b"one ", b"two", id="form, no events"),
        pytest.param(SPEECH, SAY, "audio/pcm", SOUND, b"\n\n" + SOUND, id="sound"),
        pytest.param(SPEECH, SAY, "audio/pcm", b"\n\n", b'"usage":{"choices":[]}\n\n', id="what looks like events"),
    ],
)
def test_the_first_of_a_stream_is_there_before_the_last_is_sent(
    path: str, asked: dict[str, Any], content_type: str, first: bytes, last: bytes
) -> None:
    handler = in_two_parts(content_type, first, last)
    with (
        gateway({"small": [handler]}, limits={"total_s": 5}) as (client, upstreams),
        client.stream("POST", path, **asked) as answer,
    ):
        parts = answer.iter_raw()
        assert next(parts) == first
        upstreams[0].let_go_on()
        assert b"".join(parts) == last
        assert answer.headers["content-type"] == content_type


def test_usage_of_a_transcription_that_is_streamed_is_counted() -> None:
    with gateway({"small": [in_two_parts("text/event-stream", CHUNK, LAST)]}) as (client, upstreams):
        upstreams[0].let_go_on()
        assert client.post(TRANSCRIPTIONS, **transcribe(stream="1")).content == CHUNK + LAST
        assert metric(client, 'pika_tokens_total{arm="small",kind="input"}') == faults.USAGE["prompt_tokens"]


@pytest.mark.parametrize("stream", ["false", "", "x" * 300])
def test_a_form_that_asks_for_no_stream_gets_a_checked_answer(stream: str) -> None:
    with gateway({"small": [broken_json, faults.answers]}) as (client, _):
        answer = client.post(TRANSCRIPTIONS, **transcribe(stream=stream))
        assert (answer.status_code, answer.content) == (200, WHOLE)


@pytest.mark.parametrize("silent", [False, True], ids=["drops", "silent"])
def test_sound_that_breaks_off_has_no_event_behind_it(silent: bool) -> None:
    """An error event would be played."""

    async def handler(_: Request, to: Connection) -> None:
        await to.send(head("audio/pcm") + chunk(SOUND))
        if silent:
            await to.until_left()
        await to.upstream.go_on.wait()
        to.writer.transport.abort()

    with (
        gateway({"small": [handler]}, limits={"between_chunks_s": 0.3}) as (client, upstreams),
        client.stream("POST", SPEECH, **SAY) as answer,
    ):
        parts = answer.iter_raw()
        assert next(parts) == SOUND
        if not silent:
            upstreams[0].let_go_on()
        with pytest.raises(httpx.RemoteProtocolError):
            next(parts)


def test_json_in_place_of_a_stream_is_checked_and_may_take_longer_than_a_first_byte() -> None:
    async def slow(_: Request, to: Connection) -> None:
        await to.send(head("application/json") + chunk(WHOLE[:9]))
        await asyncio.sleep(0.7)
        await to.send(chunk(WHOLE[9:]) + b"0\r\n\r\n")

    with gateway({"small": [broken_json, slow]}, limits={"first_byte_s": 0.3}) as (client, _):
        answer = chat(client, stream=True)
        assert (answer.status_code, answer.content) == (200, WHOLE)
        assert answer.headers["x-pika-attempts"] == "2"
        assert metric(client, 'pika_tokens_total{arm="small",kind="input"}') == faults.USAGE["prompt_tokens"]
