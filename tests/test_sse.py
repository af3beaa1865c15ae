"""Streams pass as bytes, however the network cuts them; only our own usage chunk is taken out."""

import json

import pytest

from server.upstream.sse import MAX_EVENT_BYTES, EventRelay, parse_usage

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CONTENT = b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] \\"usage\\":{}"}}]}\n\n'
LAST = b'data: {"choices":[],"usage":' + json.dumps(USAGE).encode() + b"}\n\n"
DONE = b"data: [DONE]\n\n"


def relay(data: bytes, step: int, drop_usage: bool) -> tuple[bytes, dict[str, int] | None]:
    events = EventRelay(drop_usage)
    out = b"".join(events.feed(data[i : i + step]) for i in range(0, len(data), step)) + events.flush()
    return out, events.usage


@pytest.mark.parametrize("step", [1, 7, 64, 10_000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_usage_chunk_is_taken_out_where_only_we_asked(step: int, newline: bytes) -> None:
    stream = (CONTENT * 3 + LAST + DONE).replace(b"\n", newline)
    out, usage = relay(stream, step, drop_usage=True)
    assert out == (CONTENT * 3 + DONE).replace(b"\n", newline)
    assert usage == USAGE


@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_every_byte_passes_where_the_client_asked(step: int) -> None:
    stream = CONTENT + LAST + DONE
    out, usage = relay(stream, step, drop_usage=False)
    assert out == stream
    assert usage == USAGE


def test_events_pass_at_once() -> None:
    events = EventRelay(drop_usage=True)
    assert events.feed(CONTENT) == CONTENT
    assert events.feed(CONTENT + CONTENT[:5]) == CONTENT
    assert events.feed(CONTENT[5:]) == CONTENT


def test_an_event_without_end_is_not_held_for_ever() -> None:
    events = EventRelay(drop_usage=True)
    endless = b"x" * (MAX_EVENT_BYTES + 1)
    assert events.feed(endless) == endless


def test_usage_of_a_whole_answer() -> None:
    text = 'says "usage":{"prompt_tokens":9}'
    answer = {"choices": [{"message": {"content": text}}], "usage": USAGE, "prompt_logprobs": None}
    assert parse_usage(json.dumps(answer, separators=(",", ":")).encode()) == USAGE
    assert parse_usage(json.dumps(answer).encode()) == USAGE
    assert parse_usage(b'{"usage":null}') is None
    assert parse_usage(b'{"usage":{"prompt') is None
    assert parse_usage(b"") is None


@pytest.mark.parametrize("comment", [b":\n\n", b"\n\n", b":\r\n\r\n", b":\r\r", b": still here\n\n"])
def test_the_shortest_event_passes_at_once(comment: bytes) -> None:
    events = EventRelay(drop_usage=True)
    assert events.feed(comment) == comment
    assert events.feed(b"data") == b""
    assert events.feed(b": 1\n\n" + comment) == b"data: 1\n\n" + comment


def test_usage_that_is_nested_too_deeply_is_none() -> None:
    assert parse_usage(b'{"usage":' + b"[" * 100_000 + b"}") is None
