"""One request and its answer, as an ASGI application has them.

Beside what uvicorn's own does: an answer's head is written together with the first of its body, HTTP/1.0 gets no
chunks, and who waits for a body that will not come is told why. An answer's start may have, beside `headers`, `lines`:
further ones as they are sent, for joining them one by one takes long.
"""

import asyncio
import logging
from collections.abc import MutableMapping
from enum import Enum, auto
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from server.errors import INTERNAL_ERROR, GatewayError
from server.http.head import Headers, Lines, lines_of

if TYPE_CHECKING:
    from server.http.connection import Connection

logger = logging.getLogger(__name__)

PHRASES = {status.value: status.phrase for status in HTTPStatus}
STATUS_LINES = {status: f"HTTP/1.1 {status} {PHRASES.get(status, '')}\r\n".encode() for status in range(100, 600)}
FRAMING = frozenset((b"content-length", b"connection", b"transfer-encoding"))
"""Headers by which the client knows where the answer ends, and whether another may follow: ours to say."""
BODILESS = (204, 304)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TOGETHER_BYTES = 2**16
"""A larger piece of a body is not copied to stand behind the head."""


class Framing(Enum):
    """How the client knows where an answer's body ends."""

    NONE = auto()
    LENGTH = auto()
    CHUNKS = auto()
    CLOSE = auto()


NONE, LENGTH, CHUNKS, CLOSE = Framing  # an enum's attribute takes ten times as long as a name


def last_answer(error: GatewayError, headers: list[tuple[bytes, bytes]]) -> bytes:
    """An error that no application gives, after which the connection ends.

    Args:
        headers: beside the error's own.
    """
    body = error.body()
    headers = [*headers, *error.headers(), (b"content-length", b"%d" % len(body))]
    lines = lines_of(header for header in headers if header[0] != b"connection")
    return STATUS_LINES[error.status] + lines + b"connection: close\r\n\r\n" + body


class Cycle:
    """
    Args:
        connection: which the request came by.
        scope: ASGI's.
        keep_alive: whether the client would go on with the connection.
    """

    __slots__ = (
        "_body", "_connection", "_expected", "_framing", "_head", "_is_head", "_read", "_refusal", "_size", "_waiter",
        "complete", "expects_continue", "keep_alive", "more_body", "scope", "started", "task",
    )  # fmt: skip

    def __init__(self, connection: "Connection", scope: dict[str, Any], keep_alive: bool) -> None:
        self.scope = scope
        self.keep_alive = keep_alive
        self.expects_continue = False
        """Whether the client waits for our word before it sends the body."""
        self.more_body = True
        self.started = False
        """Whether the application has begun to answer."""
        self.complete = False
        """Whether it has ended."""
        self.task: asyncio.Task[None]
        """That runs it."""
        self._connection = connection
        self._is_head = scope["method"] == "HEAD"  # the application may be asked for a GET instead
        self._body: list[bytes] = []
        self._size = 0  # of what has come and was not read
        self._read = False  # whether all was
        self._refusal: GatewayError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._head = b""  # waits for the first of the body
        self._framing = NONE
        self._expected = 0  # bytes that the body still has to have

    # Called by the connection

    async def run(self) -> None:
        """Have the application answer."""
        connection = self._connection
        try:
            await connection.app(self.scope, self.receive, self.send)
        except Exception:
            logger.exception("the application failed")
        finally:
            # Not by a callback, which would be one more turn of the event loop.
            connection.server_state.tasks.discard(self.task)
            if not self.complete and not connection.gone:
                if self.started:
                    connection.close()  # half an answer is out, and nothing can be added to it
                else:
                    connection.tell(GatewayError(INTERNAL_ERROR))

    def feed(self, data: bytes) -> int:
        """A piece of the body has come; returns how many bytes wait."""
        self._body.append(data)
        self._size += len(data)
        self.wake()
        return self._size

    def end_of_body(self) -> None:
        self.more_body = False
        self.wake()

    def refuse(self, error: GatewayError) -> None:
        """The rest of the body will not come."""
        self._refusal = error
        self.keep_alive = False
        self.wake()

    def wake(self) -> None:
        """There is news for who waits in `receive`."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # Called by the application

    async def receive(self) -> dict[str, Any]:
        """The body's next piece, all that has come of it; `http.disconnect` once the client has left or its answer.

        Raises:
            GatewayError: the rest of the body will not come, and why.
        """
        connection = self._connection
        if self.expects_continue and not self.started:
            self.expects_continue = False
            connection.transport.write(CONTINUE)
        while True:
            if connection.gone or self.complete:
                return {"type": "http.disconnect"}
            if self._body or not (self.more_body or self._read):
                body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
                self._body, self._size, self._read = [], 0, not self.more_body
                return {"type": "http.request", "body": body, "more_body": self.more_body}
            if self._refusal is not None:
                raise self._refusal
            connection.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """
        Raises:
            RuntimeError, ValueError: the answer is none that HTTP has.
        """
        connection = self._connection
        if connection.write_paused:
            await connection.writable.wait()
        if connection.gone:
            return
        if message["type"] == "http.response.start":
            self._begin(message["status"], message["headers"], message.get("lines", b""))
            return
        if self.complete or not self.started:
            raise RuntimeError("a body before its head, or after its end")
        more = message.get("more_body", False)
        data = self._framed(message.get("body", b""), more)
        if self._head:
            if len(data) > TOGETHER_BYTES:
                connection.transport.write(self._head)
            else:
                data = self._head + data
            self._head = b""
        if data:
            connection.transport.write(data)
        if not more:
            self.complete = True
            self.wake()
            connection.answered(self)

    def _begin(self, status: int, headers: Headers, lines: Lines) -> None:
        """
        Args:
            lines: what follows the headers.
        """
        if self.started:
            raise RuntimeError("a second head")
        self.started = True
        sent, framing, last = [*self._connection.own_headers], CHUNKS, b"\r\n"
        for header in headers:
            name, value = header
            if name not in FRAMING:
                sent.append(header)
            elif name == b"connection":
                self.keep_alive = self.keep_alive and b"close" not in value.lower()
            elif name == b"content-length" and status != 204:
                self._expected, framing = int(value), LENGTH
                sent.append(header)
        if self._is_head or status in BODILESS:
            framing = NONE
        elif framing is CHUNKS:
            if self.scope["http_version"] == "1.1":
                last = b"transfer-encoding: chunked\r\n\r\n"
            else:
                framing, self.keep_alive = CLOSE, False
        if self.expects_continue and self.more_body:
            self.keep_alive = False  # it may send the body now, or leave it out: nobody could tell
        if not self.keep_alive:
            last = b"connection: close\r\n" + last
        self._framing = framing
        self._head = b"".join((STATUS_LINES[status], lines_of(sent), lines, last))

    def _framed(self, body: bytes, more: bool) -> bytes:
        if self._framing is LENGTH:
            self._expected -= len(body)
            if self._expected < 0 or (self._expected and not more):
                raise RuntimeError("the body's length is not what the head says")
            return body
        if self._framing is CHUNKS:
            if not more:
                return b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
            return b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        return body if self._framing is CLOSE else b""
