"""The smallest HTTP client that load can be made with: one kept-alive connection, one request at a time."""

import asyncio
import json
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

import httptools

from offline.bench.servers import HOST

PATH = "/v1/chat/completions"
KEY = "none"
"""The key that clients bear, whether it is asked for or not."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    """0 where not even the head did."""
    body: bytes
    whole: bool
    """Whether it came to its end, as its framing tells."""


class Connection(asyncio.Protocol):
    """Parses answers, reads no clock and never retries."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        """The answer's first byte of body is here."""
        self.open = True
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._status = 0
        self._reply: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport
        self._unread = select.poll()

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for its answer's end, or the connection's."""
        self.begun.clear()
        self._body = bytearray()
        self._status = 0
        self._reply = asyncio.get_running_loop().create_future()
        if not self.open:
            return Reply(0, b"", False)
        self._transport.write(request)
        return await self._reply

    @property
    def idle(self) -> bool:
        """Whether another request may be sent. The socket is looked at, as httpx does: its server may have closed it
        since this loop read last."""
        return self.open and not self._unread.poll(0)

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._body += body
        self.begun.set()

    def on_message_complete(self) -> None:
        self.open = self._parser.should_keep_alive()
        self._end(whole=True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._end(whole=False)

    def _end(self, whole: bool) -> None:
        self.begun.set()
        if self._reply is not None and not self._reply.done():
            self._reply.set_result(Reply(self._status, bytes(self._body), whole))


async def connect(port: int) -> Connection:
    _, connection = await asyncio.get_running_loop().create_connection(Connection, HOST, port)
    return connection


class Connections:
    """Idle connections to one server; more are opened as they are needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[Connection] = []
        """The last one in is the first one out."""

    @asynccontextmanager
    async def one(self) -> AsyncIterator[Connection]:
        while self._idle and not self._idle[-1].idle:
            self._idle.pop().close()
        connection = self._idle.pop() if self._idle else await connect(self._port)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        if connection.open:
            self._idle.append(connection)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


def get(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n".encode()


def chat(prompt: str, **fields: Any) -> bytes:
    """A chat request, with the headers that OpenAI's client sends."""
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": prompt}], **fields}).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {HOST}\r\naccept: application/json\r\ncontent-type: application/json\r\n"
        f"authorization: Bearer {KEY}\r\nuser-agent: OpenAI/Python 2.0\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
