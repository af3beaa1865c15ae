"""uvicorn's HTTP/1.1 connection, bounded: what a client may send, and how long it may take over it.

A whole request mostly comes at once, and then nothing here runs but a few comparisons: timers are only started for a
request that is not whole yet.
"""

import asyncio
from collections.abc import Callable
from enum import Enum, auto
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from server.errors import error_body
from server.live import Live

MAX_HEADERS = 128
DELIVERY_BYTES = 2**18
"""What the event loop delivers at once, at the most."""
LINGER_BYTES = 2**20
"""What is read beyond `limits.body_mb`, so that a client which still sends reads why we refuse it."""


class Part(Enum):
    """What is expected next from the client."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()


class RefusedError(Exception):
    """Raised in the parser's callbacks, which ends its work."""


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.live: Live = self.app_state["live"]
        self.app_state = {**self.app_state, "connection": self}  # for requests, which find it in their scope
        self.on_left: Callable[[], None] | None = None
        """Called if the client leaves before its request is answered to the end."""
        self.limits = self.live.state.settings.limits  # as they were when the client came
        self.head_bytes = self.limits.head_kb * 1024
        self.part = Part.IDLE
        self.part_bytes = 0
        """Raw bytes of the part so far, those before it in its first delivery included."""
        self.delivery_bytes = 0
        self.begun = False
        """Whether a head began in the last delivery."""
        self.refused = False
        self.refusal = (400, "this is not valid HTTP/1.1")
        self.timer: asyncio.TimerHandle | None = None

    @property
    def answering(self) -> bool:
        """Whether a request whose head is here has not been answered to the end."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        limit = self.limits.connections
        if len(self.connections) > limit:
            self._refuse(503, f"{limit} connections are open (limits.connections); try again shortly")
            return
        self._wait(self.timeout_keep_alive)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        self.app_state = {}  # it refers to us
        if self.on_left is not None:
            self.on_left()

    def close_after_answer(self) -> None:
        """The answer on its way is the last one."""
        self.cycle.keep_alive = False

    def data_received(self, data: bytes) -> None:
        if self.refused or self.transport.is_closing():
            return
        self.begun = False
        self.delivery_bytes = len(data)
        self.part_bytes += len(data)
        super().data_received(data)
        if self.refused or self.transport.is_closing():
            return
        if self.part is Part.IDLE:
            if self.timer is not None:
                self._stop_waiting()
            if not self.answering:  # nothing but line ends has come
                self._wait(self.timeout_keep_alive)
        elif self.part is Part.HEAD:
            if self.begun:
                self.part_bytes = self.delivery_bytes
                self._wait(self.limits.head_s)
            if self.part_bytes > self.head_bytes + DELIVERY_BYTES:  # once it is whole it is measured
                self._refuse(*self._head_too_large())
        else:
            if self.part_bytes > 2 * self.limits.body_mb * 2**20 + LINGER_BYTES:
                self.transport.close()
            self._wait(self.limits.body_stall_s)

    def on_message_begin(self) -> None:
        self.part, self.part_bytes, self.begun = Part.HEAD, 0, True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        limit = self.head_bytes
        if len(self.headers) > MAX_HEADERS or (
            (self.part_bytes > limit or self.delivery_bytes > limit)
            and len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > limit
        ):
            self.refusal = self._head_too_large()
            raise RefusedError
        self.part, self.part_bytes = Part.BODY, 0
        super().on_headers_complete()
        self.headers = []  # trailers go here, not among the headers that the application sees
        if self.live.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        self.part = Part.IDLE
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What was sent cannot be understood, or is refused."""
        self._refuse(*self.refusal)

    def shutdown(self) -> None:
        """The gateway drains: a request that has begun to come is still answered."""
        if self.part is Part.IDLE:
            super().shutdown()
        elif self.cycle is not None:
            self.cycle.keep_alive = False

    def _wait(self, seconds: float) -> None:
        """Give the client so long for what it sends next."""
        self._stop_waiting()
        self.timer = self.loop.call_later(seconds, self._too_slow)

    def _stop_waiting(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _too_slow(self) -> None:
        if self.part is Part.IDLE:
            self.transport.close()
        elif self.part is Part.BODY and self.flow.read_paused:  # it is us who do not read
            self._wait(self.limits.body_stall_s)
        else:
            self._refuse(408, "the request did not come in time (limits.head_s, limits.body_stall_s)")

    def _head_too_large(self) -> tuple[int, str]:
        return 431, f"the head has more than {self.limits.head_kb} kB (limits.head_kb) or {MAX_HEADERS} headers"

    def _refuse(self, status: int, message: str) -> None:
        """Say why and close. An earlier request is still answered, and then there is nothing to say."""
        self._stop_waiting()
        self.refused = True
        self.live.metrics.refused.labels(status).inc()
        if self.answering and self.part is not Part.BODY:
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        if not self.answering or not (self.cycle.response_started or self.pipeline):
            body = error_body(message, "invalid_request_error" if status < 500 else "overloaded_error")
            head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            if status == 503:
                head = b"retry-after: 1\r\n" + head
            self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()
