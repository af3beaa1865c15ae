"""The little of HTTP that our raw ASGI routes need: read a bounded body, send an answer, notice a client that left."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from types import TracebackType
from typing import Any, Self

from server.errors import BodyTooLargeError, ClientLeftError, GatewayError, SlowBodyError, UpstreamTimeoutError
from server.sections import Limits

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]

REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id(raw_headers: RawHeaders) -> str:
    """The client's own `x-request-id` where it is a harmless token, else a new one."""
    for name, value in raw_headers:
        if name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            return value.decode()
    return os.urandom(16).hex()


async def read_body(raw_headers: RawHeaders, receive: Receive, limits: Limits) -> bytes:
    """The whole request body.

    Raises:
        BodyTooLargeError: it is, or says it is, larger than `limits.body_mb`.
        SlowBodyError: it took longer than `limits.body_s`.
        ClientLeftError: the client left before its end.
    """
    limit = int(limits.body_mb * 1024 * 1024)
    for name, value in raw_headers:
        # What is no number is the server's to refuse, and it counts the bytes anyway.
        if name == b"content-length" and value.isdigit() and int(value[:20]) > limit:
            raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.body_s):
            return await _read(receive, limit)
    except TimeoutError as error:
        raise SlowBodyError(f"the body did not come within {limits.body_s:g} s (limits.body_s)") from error
    except OverflowError:
        raise _too_large(limits) from None


async def _read(receive: Receive, limit: int) -> bytes:
    """
    Raises:
        OverflowError: it is larger than `limit` bytes.
    """
    parts = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)
        if size > limit:
            raise OverflowError
        if not message.get("more_body"):
            return part if len(parts) == 1 else b"".join(parts)


def _too_large(limits: Limits) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {limits.body_mb:g} MB (limits.body_mb)")


async def send_whole(send: Send, status: int, headers: RawHeaders, body: bytes) -> None:
    """Send an answer that is complete."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, headers: RawHeaders = ()) -> None:
    """Send OpenAI's error JSON."""
    await send_whole(send, error.status, [*error.headers(), *headers], error.body())


class Watch:
    """Cancels the task that serves a request once its client leaves or its time is up.

    with Watch(receive) as watch:
        watch.limit(60)
        ...

    Raises:
        ClientLeftError: the client left; the block has ended by then.
        UpstreamTimeoutError: the time was up; the same.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._error: GatewayError | None = None

    def limit(self, seconds: float) -> None:
        """From the block's beginning; a second call overrules the first."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._began + seconds, self._expire, seconds)

    def __enter__(self) -> Self:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._watcher = self._loop.create_task(self._until_left())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._watcher.cancel()
        if self._timer is not None:
            self._timer.cancel()
        if self._error is not None and kind is asyncio.CancelledError and not self._task.uncancel():
            raise self._error from error

    async def _until_left(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._cancel(ClientLeftError())

    def _expire(self, seconds: float) -> None:
        self._cancel(UpstreamTimeoutError(f"the request took longer than {seconds:g} s (limits.total_s)"))

    def _cancel(self, error: GatewayError) -> None:
        if self._error is None:
            self._error = error
            self._task.cancel()
