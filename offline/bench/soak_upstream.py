"""The upstreams of `pika bench soak`: they take a while to answer, repeat the question's mark, and fail at times.

python -P -m offline.bench.soak_upstream FAULT_SHARE SEED PORT [PORT ...]      (started by `offline.bench.soak`)
"""

import asyncio
import json
import random
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import uvloop

from offline.bench.servers import HOST, more_files

CHUNKS = 16
ANSWER_S = 2.0
"""From question to answer, or to a stream's last chunk."""
SLOW_HEAD_S = 2.0
SILENT_S = 120.0
BACKLOG = 4096
MARK = re.compile(rb"mark-[0-9]+")
"""Stands in the question, and in every piece of its answer."""
USAGE = {"prompt_tokens": 20, "completion_tokens": CHUNKS, "total_tokens": 20 + CHUNKS}
EVENT_STREAM = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Exchange:
    """One question and its connection."""

    def __init__(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        found = MARK.search(body)
        self.mark = found.group().decode() if found else ""
        self.streamed = b'"stream":true' in body
        self.usage = b'"include_usage":true' in body
        self._writer = writer

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def drop(self) -> None:
        self._writer.transport.abort()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer as it should be, at the pace of a model."""
        if not self.streamed:
            await asyncio.sleep(ANSWER_S)
            yield self.whole()
            return
        yield EVENT_STREAM
        for index in range(CHUNKS):
            await asyncio.sleep(ANSWER_S / CHUNKS)
            choice = {"index": 0, "delta": {"content": f"{self.mark}/{index} "}, "finish_reason": None}
            yield _chunk(_event(choices=[choice]))
        if self.usage:
            yield _chunk(_event(choices=[], usage=USAGE))
        yield _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def whole(self) -> bytes:
        choice = {"index": 0, "message": {"role": "assistant", "content": self.mark}, "finish_reason": "stop"}
        return response(200, _json(object="chat.completion", choices=[choice], usage=USAGE))


Fault = Callable[[Exchange], Awaitable[None]]


async def drops_before_first_byte(exchange: Exchange) -> None:
    exchange.drop()


async def drops_after_head(exchange: Exchange) -> None:
    head = EVENT_STREAM if exchange.streamed else exchange.whole().partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    await exchange.send(head)
    await asyncio.sleep(0.1)
    exchange.drop()


async def drops_in_the_middle(exchange: Exchange) -> None:
    """Of a stream after some chunks, of a whole answer within its body."""
    if not exchange.streamed:
        await exchange.send(exchange.whole()[:-20])
    else:
        sent = 0
        async for piece in exchange.pieces():
            await exchange.send(piece)
            if (sent := sent + 1) > CHUNKS // 2:
                break
    await asyncio.sleep(0.1)
    exchange.drop()


def answers_with(status: int, *headers: str) -> Fault:
    async def fault(exchange: Exchange) -> None:
        await exchange.send(response(status, b'{"error":{"message":"injected","type":"server_error"}}', *headers))

    return fault


async def is_silent(exchange: Exchange) -> None:
    await asyncio.sleep(SILENT_S)


async def writes_its_head_slowly(exchange: Exchange) -> None:
    """In three parts; all is well with the rest."""
    head, body = b"", b""
    async for piece in exchange.pieces():
        if not head:
            head, _, body = piece.partition(b"\r\n\r\n")
            third = len(head) // 3
            for part in (head[:third], head[third : 2 * third], head[2 * third :] + b"\r\n\r\n" + body):
                await asyncio.sleep(SLOW_HEAD_S / 3)
                await exchange.send(part)
        else:
            await exchange.send(piece)


async def writes_broken_json(exchange: Exchange) -> None:
    """Well framed, but the JSON breaks off. Of a stream only whole events are looked at, so there it drops."""
    if exchange.streamed:
        await drops_in_the_middle(exchange)
    else:
        await exchange.send(response(200, exchange.whole().partition(b"\r\n\r\n")[2][:-20]))


FAULTS: dict[Fault, float] = {
    drops_before_first_byte: 1,
    drops_after_head: 1,
    drops_in_the_middle: 1,
    answers_with(500): 1,
    answers_with(503): 1,
    answers_with(429): 1,
    # Rare: a server that says so is left alone for as long, and were all four, everybody would have to be refused.
    answers_with(429, "retry-after: 1"): 0.1,
    is_silent: 1,
    writes_its_head_slowly: 1,
    writes_broken_json: 1,
}
"""How often each is drawn, beside the others."""


def response(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def _json(**fields: object) -> bytes:
    return json.dumps({"id": "chatcmpl-1", "model": "upstream", **fields}, separators=(",", ":")).encode()


def _event(**fields: object) -> bytes:
    return b"data: " + _json(object="chat.completion.chunk", **fields) + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def connected(
    share: float, rng: random.Random, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Answer on one connection until the other side leaves it, also in the middle of an answer."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            path = head.split(b" ", 2)[1]
            length = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
            body = await reader.readexactly(int(length.group(1)) if length else 0)
            if not path.endswith(b"/completions"):
                writer.write(response(200, b""))
                continue
            exchange = Exchange(body, writer)
            if rng.random() < share:
                (fault,) = rng.choices(list(FAULTS), list(FAULTS.values()))
                await fault(exchange)
            else:
                async for piece in exchange.pieces():
                    await exchange.send(piece)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def serve(share: float, seed: int, ports: list[int]) -> None:
    rng = random.Random(seed)  # noqa: S311 - faults, not secrets
    servers = [
        await asyncio.start_server(partial(connected, share, rng), HOST, port, backlog=BACKLOG) for port in ports
    ]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    more_files()
    uvloop.run(serve(float(sys.argv[1]), int(sys.argv[2]), [int(port) for port in sys.argv[3:]]))
