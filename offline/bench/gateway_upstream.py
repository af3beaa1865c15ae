"""The upstream of `pika bench gateway`: a server in vLLM's form that answers at once, from bytes made beforehand.

python -P -m offline.bench.gateway_upstream PORT      (started by `offline.bench.gateway`)

A body that holds "one-by-one" gets its stream's chunks each by itself, as a model writes them; one that holds "hold"
gets the first chunk, and the others once somebody has asked for /release.
"""

import asyncio
import json
import sys
from typing import Any, cast

import httptools
import uvloop

from offline.bench.servers import HOST, more_files

CHUNKS = 64
CHUNK_S = 0.002
"""From one chunk to the next where they come one by one."""
BACKLOG = 4096
MARK = "forty-two"
"""Part of every answer, and of a stream's last chunk of text."""

USAGE = {"prompt_tokens": 60, "completion_tokens": CHUNKS, "total_tokens": 60 + CHUNKS}
HEAD = {"id": "chatcmpl-0123456789abcdef", "created": 1750000000, "model": "upstream"}
CHOICE = {"index": 0, "logprobs": None, "finish_reason": "stop"}


def _json(fields: dict[str, Any]) -> bytes:
    return json.dumps({**HEAD, **fields}, separators=(",", ":")).encode()


def _event(choices: list[dict[str, Any]], **fields: Any) -> bytes:
    return b"data: " + _json({"object": "chat.completion.chunk", "choices": choices, **fields}) + b"\n\n"


def _text(index: int) -> bytes:
    last = index == CHUNKS - 1
    delta = {"content": f" {MARK}" if last else " word"}
    return _event([{**CHOICE, "delta": delta, "finish_reason": "stop" if last else None}])


MESSAGE = {"role": "assistant", "content": f"The answer is {MARK}. " + "It was worked out step by step. " * 8}
WHOLE = _json({"object": "chat.completion", "choices": [{**CHOICE, "message": MESSAGE}], "usage": USAGE})
EVENTS = [_text(index) for index in range(CHUNKS)]
DONE = b"data: [DONE]\n\n"
STREAM = b"".join(EVENTS) + DONE
"""What a client gets that does not ask for usage."""


def _answer(body: bytes, kind: bytes = b"application/json") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b" % (kind, len(body), body)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


ANSWER = _answer(WHOLE)
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED = [_chunk(event) for event in EVENTS]
LAST = _chunk(DONE) + b"0\r\n\r\n"
LAST_WITH_USAGE = _chunk(_event([], usage=USAGE)) + LAST
METRICS = _answer(
    b'vllm:num_requests_running{model_name="upstream"} 0\nvllm:num_requests_waiting{model_name="upstream"} 0\n'
    b'vllm:kv_cache_usage_perc{model_name="upstream"} 0\n',
    b"text/plain; version=0.0.4",
)
MODELS = _answer(b'{"object":"list","data":[{"id":"upstream","object":"model"}]}')


HELD: list[tuple[asyncio.Transport, bytes]] = []
"""Streams that wait for /release, with what is left to send."""


class Upstream(asyncio.Protocol):
    """One connection."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._path = b""
        self._body: list[bytes] = []
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path = url

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body = b"".join(self._body)
        self._body.clear()
        if self._path.endswith(b"/completions"):
            self._complete(body)
        elif self._path == b"/release":
            for transport, rest in HELD:
                transport.write(rest)
            HELD.clear()
            self._transport.write(_answer(b""))
        else:
            self._transport.write({b"/metrics": METRICS, b"/v1/models": MODELS}.get(self._path, _answer(b"")))

    def _complete(self, body: bytes) -> None:
        if b'"stream":true' not in body and b'"stream": true' not in body:
            self._transport.write(ANSWER)
            return
        usage = b'"include_usage":true' in body or b'"include_usage": true' in body
        last = LAST_WITH_USAGE if usage else LAST
        if b'"one-by-one"' in body:
            self._transport.write(STREAM_HEAD)
            self._one_by_one(0, last)
        elif b'"hold"' in body:
            self._transport.write(STREAM_HEAD + CHUNKED[0])
            HELD.append((self._transport, b"".join(CHUNKED[1:]) + last))
        else:
            self._transport.write(STREAM_HEAD + b"".join(CHUNKED) + last)

    def _one_by_one(self, index: int, last: bytes) -> None:
        self._transport.write(CHUNKED[index])
        if index + 1 < CHUNKS:
            asyncio.get_running_loop().call_later(CHUNK_S, self._one_by_one, index + 1, last)
        else:
            self._transport.write(last)


async def serve(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Upstream, HOST, port, backlog=BACKLOG)
    await server.serve_forever()


if __name__ == "__main__":
    more_files()
    uvloop.run(serve(int(sys.argv[1])))
