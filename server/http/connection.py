"""One client's HTTP/1.1 connection, bounded: what the client may send, and how long it may take over it.

In the place of uvicorn's own, whose server calls it. A whole request mostly comes at once, and then little runs here
but llhttp's callbacks.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import httptools
from uvicorn import Config
from uvicorn.server import ServerState

from server.errors import (
    INTERNAL_ERROR,
    GatewayError,
    HeadTooLargeError,
    InvalidHTTPError,
    OverloadedError,
    SlowBodyError,
    SlowHeadError,
)
from server.http.cycle import Cycle, last_answer
from server.http.deadline import HEARD_S, Deadline, waits_unread
from server.http.head import read_head
from server.http.request_parser import BODY, HEAD, IDLE, MAX_HEADERS, RequestParser
from server.record import count_unrouted

logger = logging.getLogger(__name__)

DELIVERY_BYTES = 2**18
"""What the event loop delivers at once, at the most."""
LINGER_BYTES = 2**20
"""What is read beyond `limits.body_mb`, or after our last words, so that a client which still sends reads them."""
LINGER_S = 2.0
"""For so long a client may take to close a connection that we have ended: closing first would be a reset to it."""
MAX_WAITING = 100
"""Of one connection's requests, behind the one that is being answered: what a client sends on top of them at once is
not read, and the connection ends after them."""
MAX_LINGERING = 256
"""Of the connections beyond `limits.connections`: in a flood each is closed at once."""
SOON_S = 1.0
"""What a client asks so soon after a stream that failed is still answered, since it may not have noticed."""


class Connection(RequestParser, asyncio.Protocol):
    """One client's connection; the arguments are what uvicorn's server gives."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(app_state)
        self.app = config.loaded_app
        self.server_state = server_state
        self.on_left: Callable[[], None] | None = None
        """Called if the client leaves before its request is answered to the end."""
        self.gone = False
        """Whether the connection is no more."""
        self.write_paused = False
        self.writable = asyncio.Event()
        """Set where `write_paused` is not, and once the client has left."""
        self.writable.set()
        self.transport: asyncio.Transport
        self._loop = _loop or asyncio.get_running_loop()
        self._idle_s: float = config.timeout_keep_alive
        self._cycles: deque[Cycle] = deque()
        """Requests that are not answered to the end: the first is being answered, the last may still come in."""
        self._refused = False
        self._ended = False
        """Whether we have said our last word."""
        self._last = False
        """Whether the next answer is the last one."""
        self._reading_paused = False
        self._deadline = Deadline(self._loop, self._too_slow)
        """For what the client sends next."""
        self._unread: Deadline
        """For what it has to read."""

    # Called by the event loop and by uvicorn's server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's have no such base class
        self._unread = Deadline(self._loop, self.transport.abort)
        self.server, self.client = _address(transport, "sockname"), _address(transport, "peername")
        connections: set[Any] = self.server_state.connections
        connections.add(self)
        limit = self._limits.connections
        if len(connections) > limit:
            self._refuse(OverloadedError(f"{limit} connections are open (limits.connections); try again shortly"))
            if len(connections) > limit + MAX_LINGERING:
                self.close()
        else:
            self._deadline.set(self._idle_s)

    def connection_lost(self, error: Exception | None) -> None:
        self.gone = True
        self._deadline.close()
        self._unread.close()
        connections: set[Any] = self.server_state.connections
        connections.discard(self)
        for cycle in self._cycles:
            cycle.wake()
        self._cycles.clear()
        self.writable.set()
        del self._parser  # it refers to us, as do these
        self._incoming, self.app_state = None, {}
        if self.on_left is not None:
            self.on_left()

    def data_received(self, data: bytes) -> None:
        self._part_bytes += len(data)
        if self._ended or self._refused or self.transport.is_closing():
            if self._part_bytes > LINGER_BYTES:
                self.close()
            return
        self._delivery_bytes = len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            if self._refusal is None and isinstance(error, httptools.HttpParserCallbackError):
                logger.error("a request cannot be read", exc_info=error)  # a bug of ours
                self._refusal = GatewayError(INTERNAL_ERROR)
            self._refuse(self._refusal or InvalidHTTPError.of(data, error))
            return
        self._look_after_time()

    def _look_after_time(self) -> None:
        """What has been delivered is read: from now on the client has so long for what is to come next."""
        if self._part is IDLE:
            self._deadline.clear()
            if not self._cycles:  # nothing but line ends has come
                self._deadline.set(self._idle_s)
        elif self._part is HEAD:
            if not self._timed:
                self._timed, self._part_bytes = True, self._delivery_bytes
                self._deadline.set(self._limits.head_s)
            if self._part_bytes > self._head_bytes + DELIVERY_BYTES:  # once it is whole it is measured
                self._refuse(HeadTooLargeError(self._limits.head_kb, MAX_HEADERS))
        else:
            if not self._timed:
                self._timed = True
                self._deadline.set(self._limits.body_s)
            if self._part_bytes > 2 * self._limits.body_mb * 2**20 + LINGER_BYTES:
                self.close()
            elif self._part_bytes > self._framed_bytes + self._head_bytes + DELIVERY_BYTES:
                self._refuse(HeadTooLargeError(self._limits.head_kb, MAX_HEADERS))

    def eof_received(self) -> None:
        """The client has closed, or will say no more, which is taken for the same."""

    def pause_writing(self) -> None:
        self.write_paused = True
        self.writable.clear()
        self._unread.set(self._limits.total_s)

    def resume_writing(self) -> None:
        self.write_paused = False
        self.writable.set()
        if not self._ended:
            self._unread.clear()

    def shutdown(self) -> None:
        """The gateway drains: a request that has begun to come is still answered."""
        if self._cycles:
            self._cycles[-1].keep_alive = False
        elif self._part is IDLE or self._ended:
            self.close()

    # Called by the parser

    def come(self, cycle: Cycle) -> None:
        if len(self._cycles) > MAX_WAITING:
            self._refuse_head(OverloadedError("too many requests came at once"))  # the earlier ones are answered
        self._cycles.append(cycle)
        if len(self._cycles) == 1:
            self._start(cycle)
        else:
            self.pause_reading()  # one after the other

    def keeps_alive(self) -> bool:
        return not (self._last or self.live.draining)

    def pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def go_on_reading(self) -> None:
        if len(self._cycles) < 2 and not self._refused:
            self.resume_reading()

    # Called by requests

    @property
    def own_headers(self) -> list[tuple[bytes, bytes]]:
        """Those of every answer."""
        return self.server_state.default_headers

    def resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def answered(self, cycle: Cycle) -> None:
        """The first of the requests is answered to the end."""
        self.server_state.total_requests += 1
        self._cycles.popleft()
        if self._ended or self.transport.is_closing():
            return
        if not cycle.keep_alive:
            if self._part is IDLE or self.live.draining:
                self.close()
            else:
                self._end()
            return
        self.go_on_reading()
        if self._cycles:
            self._start(self._cycles[0])
        elif self._part is IDLE:
            self._deadline.set(self._idle_s)

    def close(self) -> None:
        """Close once the client has read what is on its way."""
        self._ended = True
        self.transport.close()
        self._unread.set(self._limits.total_s)

    def close_soon(self) -> None:
        """The answer on its way has failed: it is the last one, but for what the client asks at once."""
        self._last = True
        self._idle_s = SOON_S

    def tell(self, error: GatewayError) -> None:
        """An error, then the end. It counts as a request that nothing was chosen for."""
        request_id = read_head(self._headers if self._part is not IDLE else ()).request_id
        self._write_error(error, request_id)
        count_unrouted(self.live.metrics, request_id, error.status, "none")

    # Within

    def _start(self, cycle: Cycle) -> None:
        cycle.task = self._loop.create_task(cycle.run())
        self.server_state.tasks.add(cycle.task)

    def _too_slow(self) -> None:
        if self._ended:
            if self.transport.get_write_buffer_size():  # it still reads our last words
                self._deadline.set(LINGER_S)
            else:
                self.transport.abort()
        elif self._part is IDLE:
            if waits_unread(self.transport):  # who asks in the last moment is answered
                self._deadline.set(HEARD_S)
            else:
                self._end()
        elif self._reading_paused:  # it is us who do not read
            self._deadline.set(self._limits.head_s if self._part is HEAD else self._limits.body_s)
        elif self._part is HEAD:
            self._refuse(SlowHeadError(self._limits.head_s))
        else:
            self._refuse(SlowBodyError(self._limits.body_s))

    def _refuse(self, error: GatewayError) -> None:
        """Say why and end. An earlier request is still answered, and then there is nothing to say."""
        self._refused, self._part_bytes = True, 0
        self._deadline.clear()
        self.live.metrics.refused.labels(error.status).inc()
        if self._part is BODY:
            assert self._incoming is not None
            if self._incoming.complete:
                self._end()
            else:
                self._incoming.refuse(error)  # whoever answers it says so
        elif self._cycles:
            self._cycles[-1].keep_alive = False
            self.pause_reading()
        elif self._part is HEAD or not isinstance(error, OverloadedError):
            self.tell(error)
        else:  # nobody has asked anything yet
            self._write_error(error, read_head(()).request_id)

    def _write_error(self, error: GatewayError, request_id: str) -> None:
        self.transport.write(last_answer(error, [*self.own_headers, (b"x-request-id", request_id.encode())]))
        self._end()

    def _end(self) -> None:
        """Say no more. What the client still sends is read for a while: a reset might cost it our last words."""
        self._ended, self._part_bytes = True, 0
        self.transport.write_eof()
        self.resume_reading()
        self._deadline.set(LINGER_S)
        self._unread.set(self._limits.total_s)


def _address(transport: asyncio.BaseTransport, name: str) -> tuple[str, int] | None:
    address = transport.get_extra_info(name)
    return (str(address[0]), int(address[1])) if isinstance(address, tuple) else None
