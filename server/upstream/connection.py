"""One connection to an upstream: a parser of answers, and flow control."""

import asyncio
from collections.abc import Callable
from enum import IntEnum
from math import inf
from typing import cast

import httptools

MAX_HEAD_BYTES = 64 * 1024
HIGH_WATER_BYTES = 256 * 1024
"""Where so much of a stream waits for its client, no more is read from the upstream."""
STALE_S = 0.5
"""A kept connection that ends without an answer so soon after a request was closed by the server before it came."""


class ExchangeError(Exception):
    """An exchange with an upstream failed; the message says how, without the upstream's name."""


class SilentError(ExchangeError):
    """Nothing came in time."""


class BrokenError(ExchangeError):
    """The connection ended early, or what came is no HTTP answer."""


class StaleError(BrokenError):
    """A kept connection had been closed by the server while it was idle."""


class Want(IntEnum):
    """What a reader waits for."""

    NOTHING = 0
    HEAD = 1
    SOME = 2
    ALL = 3


NOTHING, HEAD, SOME, ALL = Want  # an enum's attribute takes ten times as long as a name


class Connection(asyncio.Protocol):
    """Carries one exchange at a time.

    Args:
        returned: asked when an exchange is over and the connection could be kept; False: close it.
        lost: told when the connection ends, perhaps twice.
    """

    def __init__(self, returned: Callable[["Connection"], bool], lost: Callable[["Connection"], None]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        """Of the answer; names in lower case."""
        self.deadline = inf
        """Loop time at which `expire` is due."""
        self._returned = returned
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._chunks: list[bytes] = []
        self.on_body = self._chunks.append  # for the parser, which calls it for each of a stream's chunks
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._want = NOTHING
        self._busy = False
        self._reset()

    def _reset(self) -> None:
        self._failure: ExchangeError | None = None
        self._chunks.clear()
        self._size = 0  # bytes that have come and were not taken
        self._head = False
        self._complete = False
        self._keep = False

    def begin(self, request: bytes, reused: bool) -> None:
        """Send a whole request."""
        self._reset()
        self._busy = True
        self._stale_until = self._loop.time() + STALE_S if reused else 0.0
        self.deadline = inf
        if self._transport.is_closing():
            self._fail(self._ended())
        else:
            self._transport.write(request)

    def until(self, seconds: float) -> float:
        """The loop time that it will be then."""
        return self._loop.time() + seconds

    async def head(self, until: float) -> None:
        """Wait for status and headers, until a loop time.

        Raises:
            ExchangeError
        """
        while not self._head:
            await self._wait(HEAD, until)

    async def some(self, until: float) -> bytes:
        """The body's next bytes, all that have come; none at its end.

        Raises:
            ExchangeError
        """
        while not self._chunks:
            if self._failure is not None:
                raise self._failure
            if self._complete:
                return b""
            # As in `_wait`, which would be one more coroutine for each of a stream's chunks.
            self._want, self.deadline = SOME, until
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter, self._want, self.deadline = None, NOTHING, inf
        return self._taken()

    @property
    def ended(self) -> bool:
        """Whether the whole body has been taken."""
        return self._complete and not self._chunks and self._failure is None

    async def whole(self, limit: int, until: float) -> bytes:
        """The rest of the body.

        Raises:
            ExchangeError: also where it is larger than `limit` bytes.
        """
        self._limit = limit
        while not self._complete or self._failure is not None:
            await self._wait(ALL, until)
        return self._taken()

    def _taken(self) -> bytes:
        chunks = self._chunks
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        chunks.clear()
        self._size = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    async def _wait(self, want: Want, until: float) -> None:
        if self._failure is not None:
            raise self._failure
        if self._paused and want is ALL:
            self._paused = False
            self._transport.resume_reading()
        self._want, self.deadline = want, until
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter, self._want, self.deadline = None, NOTHING, inf

    def finish(self) -> None:
        """The exchange is over. An answer that was not read to its end is cut off, which cancels its generation."""
        self._busy = False
        self._chunks.clear()
        if not (self._complete and self._keep and self._failure is None and self._returned(self)):
            self.abort()
        self._failure = None  # once it was raised it refers to who raised it, and so to us

    def abort(self) -> None:
        """Close at once."""
        self._lost(self)
        self._transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline = inf
        if not self._busy:
            self.abort()
        elif self._waiter is not None:
            self._fail(SilentError("sent nothing in time"))

    def _fail(self, error: ExchangeError) -> None:
        if self._failure is None:
            self._failure = error
        self._wake()

    def _fail_for_head(self) -> None:
        self._fail(BrokenError(f"sent more than {MAX_HEAD_BYTES} bytes of headers"))

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is None or waiter.done():
            return
        if self._failure is not None:
            waiter.set_exception(self._failure)
        elif (
            self._complete
            or (self._want is HEAD and self._head)
            or (self._want is SOME and self._chunks)
        ):  # fmt: skip
            waiter.set_result(None)

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's have no such base class

    def data_received(self, data: bytes) -> None:
        if not self._busy:
            self.abort()  # nobody asked
            return
        self._stale_until = 0.0
        assert self._parser is not None
        self._size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(BrokenError(f"sent what is no HTTP answer ({error})"))
        if self._size > MAX_HEAD_BYTES:
            self._bound()
        self._wake()

    def _bound(self) -> None:
        if not self._head:
            self._fail_for_head()
        elif self._want is not ALL:
            if self._size > HIGH_WATER_BYTES and not self._paused:
                self._paused = True
                self._transport.pause_reading()
        elif self._size > self._limit:
            self._fail(BrokenError(f"answered more than {self._limit} bytes"))

    def connection_lost(self, error: Exception | None) -> None:
        self._parser = None  # it refers to us
        if self._busy:
            if error is None and self._head and not self._framed():
                self._complete = True
            elif not self._complete:
                self._fail(self._ended())
            self._wake()
        self._lost(self)

    def _ended(self) -> ExchangeError:
        return (StaleError if self._loop.time() < self._stale_until else BrokenError)("broke off")

    def eof_received(self) -> None:
        if not self._busy:
            self._lost(self)  # nobody shall send on it any more; the transport closes itself

    def _framed(self) -> bool:
        """Whether the answer says where it ends; if not, the connection's end is its end."""
        return any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    # Called by the parser

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second answer to one request")
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._head:
            return  # a trailer
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if self._size > MAX_HEAD_BYTES and sum(len(name) + len(value) for name, value in self.headers) > MAX_HEAD_BYTES:
            self._fail_for_head()
        # 100 Continue and its like announce the answer.
        self._head = self.status >= 200

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._head:
            self._complete = True
            self._keep = self._parser.should_keep_alive()
