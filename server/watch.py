"""What ends a request early: its client left, its time is up, or the gateway goes down."""

import asyncio
from types import TracebackType
from typing import Self

from server.errors import ClientLeftError, GatewayError
from server.http import Receive


class Watch:
    """Cancels the task that serves a request once its time is up or its client leaves.

    with Watch() as watch:
        watch.limit(60, SlowBodyError("..."))
        ...
        watch.client(receive)

    Raises:
        GatewayError: the one that `limit` was given; the block has ended by then.
        ClientLeftError: the client left; the same.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.reason: GatewayError | None = None
        """Why the task was cancelled."""

    def limit(self, seconds: float, error: GatewayError) -> None:
        """From now on; a second call overrules the first."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self.end, error)

    def client(self, receive: Receive) -> None:
        """Look out for the client's leaving. Nothing else may call `receive` from here on."""
        self._watcher = self._loop.create_task(self._until_left(receive))

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        if self.reason is not None and kind is asyncio.CancelledError and not self._task.uncancel():
            raise self.reason from error

    async def _until_left(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(ClientLeftError())

    def end(self, error: GatewayError) -> None:
        """Now, for this reason."""
        if self.reason is None:
            self.reason = error
            self._task.cancel()
