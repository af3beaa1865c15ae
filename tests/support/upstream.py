"""Upstreams that misbehave on purpose, on real sockets. Where an upstream is to behave, tests use real vLLM."""

import asyncio
import json
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

USAGE = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "upstream",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": USAGE,
}
WHOLE = json.dumps(ANSWER, separators=(",", ":")).encode()
CHUNK = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"hi"}}]}\n\n'
LAST = b'data: {"id":"c","choices":[],"usage":' + json.dumps(USAGE).encode() + b"}\n\ndata: [DONE]\n\n"
EVENTS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Request:
    """What the upstream was sent."""

    path: str
    headers: dict[str, str]
    body: Any
    """None where it is no JSON."""
    raw: bytes = b""
    repeated: dict[str, list[str]] = field(default_factory=dict)
    """All values of each header, in order."""


@dataclass
class Connection:
    """One accepted connection, as its handler sees it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: "Upstream"

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def until_left(self) -> None:
        """Send nothing until the other side closes; half a minute at the most."""
        for _ in range(600):
            if self.reader.at_eof() or self.reader.exception() is not None:
                self.upstream.left.set()
                return
            await asyncio.sleep(0.05)


Handler = Callable[[Request, Connection], Awaitable[None]]


@dataclass
class Upstream:
    handler: Handler
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    health: int = 200
    """The status of /health."""
    metrics: bytes = b""
    """What /metrics says."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set when the other side closed the connection while we were still sending."""

    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """What a handler may wait for."""
    loop: asyncio.AbstractEventLoop | None = field(default=None, repr=False)

    def let_go_on(self) -> None:
        """Set `go_on`, from another thread."""
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.go_on.set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


def response(status: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def answers(request: Request, to: Connection) -> None:
    """As it should be: a whole answer, or a stream of three chunks and the usage."""
    if request.body is not None and request.body.get("stream"):
        await to.send(EVENTS + chunk(CHUNK) * 3 + chunk(LAST) + b"0\r\n\r\n")
    else:
        await to.send(response(200, WHOLE))


def fails_with(status: int, *headers: str) -> Handler:
    async def handler(_: Request, to: Connection) -> None:
        await to.send(response(status, b'{"error":{"message":"no"}}', *headers))

    return handler


async def hangs(_: Request, to: Connection) -> None:
    """Accepts, then silence."""
    await to.until_left()


async def drops_at_once(_: Request, to: Connection) -> None:
    to.writer.transport.abort()


async def drops_after_head(_: Request, to: Connection) -> None:
    await to.send(EVENTS)
    await asyncio.sleep(0.05)
    to.writer.transport.abort()


async def drops_in_mid_stream(_: Request, to: Connection) -> None:
    await to.send(EVENTS + chunk(CHUNK))
    await asyncio.sleep(0.1)
    to.writer.transport.abort()


async def stalls_in_mid_stream(_: Request, to: Connection) -> None:
    await to.send(EVENTS + chunk(CHUNK))
    await to.until_left()


async def streams_a_while(request: Request, to: Connection) -> None:
    """As it should be, but a stream of 30 chunks takes a second and a half."""
    if not request.body.get("stream"):
        return await answers(request, to)
    await to.send(EVENTS)
    for _ in range(30):
        await to.send(chunk(CHUNK))
        await asyncio.sleep(0.05)
    await to.send(chunk(LAST) + b"0\r\n\r\n")


async def streams_on(_: Request, to: Connection) -> None:
    """A chunk every 50 ms, for half a minute at the most."""
    with suppress(ConnectionError):
        await to.send(EVENTS)
        for _ in range(600):
            await to.send(chunk(CHUNK))
            if to.reader.at_eof():
                break
            await asyncio.sleep(0.05)
    to.upstream.left.set()


@contextmanager
def running(handler: Handler, port: int = 0, tls: ssl.SSLContext | None = None) -> Iterator[Upstream]:
    """An upstream in a thread of its own; /health is fine."""
    upstream = Upstream(handler)
    loop = upstream.loop = asyncio.new_event_loop()
    connections: set[asyncio.Task[None]] = set()

    async def serve_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            while (request := await _read(reader)) is not None:
                if request.path == "/health":
                    writer.write(response(upstream.health, b""))
                elif request.path == "/metrics":
                    writer.write(response(200, upstream.metrics))
                else:
                    upstream.requests.append(request)
                    await upstream.handler(request, Connection(reader, writer, upstream))
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            connections.discard(task)
            writer.close()

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    starting = asyncio.start_server(serve_connection, "127.0.0.1", port, ssl=tls)
    server = asyncio.run_coroutine_threadsafe(starting, loop).result(timeout=10)
    upstream.port = server.sockets[0].getsockname()[1]

    async def stop() -> None:
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    try:
        yield upstream
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(timeout=10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
        loop.close()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    lines = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in head[1:]) if name]
    headers = dict(lines)
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    repeated = {name: [value for other, value in lines if other == name] for name in headers}
    is_json = body and headers.get("content-type") == "application/json"
    return Request(head[0].split(" ")[1], headers, json.loads(body) if is_json else None, body, repeated)
