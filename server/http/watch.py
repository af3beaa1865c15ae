"""What ends a request early: its client left, its time is up, or the gateway goes down."""

import asyncio
from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Protocol, Self

from server.errors import ClientLeftError, GatewayError


class Client(Protocol):
    """What we need of a client's connection; `server.http.connection.Connection` is one."""

    transport: asyncio.Transport
    on_left: Callable[[], None] | None

    def close_soon(self) -> None: ...


class Watch:
    """Cancels the task that serves a request once its time is up or its client leaves.

    with Watch(loop) as watch:
        watch.limit(60, lambda: TotalTimeError(60))
        ...
        watch.client(connection)

    Args:
        loop: the running one; to ask for it is a system call.

    Raises:
        GatewayError: the one that `limit` was given; the block has ended by then.
        ClientLeftError: the client left; the same.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._due = inf
        self._too_late: Callable[[], GatewayError]
        self._client: Client | None = None
        self.reason: GatewayError | None = None
        """Why the task was cancelled."""

    def limit(self, seconds: float, error: Callable[[], GatewayError]) -> None:
        """From now on; a second call overrules the first. Kept as precisely as `check` is called."""
        self._due = self._loop.time() + seconds
        self._too_late = error

    def check(self, now: float) -> None:
        """End it if its time is up.

        Args:
            now: loop time.
        """
        if self._due < now:
            self._due = inf
            self.end(self._too_late())

    def client(self, connection: Client) -> None:
        """Look out for the client's leaving. A task that waits for ASGI's `receive` to say so would cost more."""
        self._client = connection
        connection.on_left = self._left
        if connection.transport.is_closing():
            self._left()

    def _left(self) -> None:
        self.end(ClientLeftError())

    def __enter__(self) -> Self:
        task = asyncio.current_task(self._loop)
        assert task is not None
        self._task = task
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._due = inf
        if self._client is not None:
            self._client.on_left = None
        if self.reason is not None and kind is asyncio.CancelledError and not self._task.uncancel():
            reason, self.reason = self.reason, None
            try:
                raise reason from error
            finally:
                del reason, error  # they refer to this very frame, which would stay until garbage is looked for

    def end(self, error: GatewayError) -> None:
        """Now, for this reason."""
        if self.reason is None:
            self.reason = error
            self._task.cancel()
