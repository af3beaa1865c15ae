"""The little of HTTP that our raw ASGI routes need: read a bounded body, send an answer, notice a client that left."""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from server.errors import BodyTooLargeError, ClientLeftError, GatewayError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
RawHeaders = Iterable[tuple[bytes, bytes]]

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def read_headers(scope: Scope) -> dict[str, str]:
    """Header names in lower case; of a repeated header the last value."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def request_id(headers: MutableMapping[str, str]) -> str:
    """The client's own `x-request-id` where it is a harmless token, else a new one."""
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def read_body(headers: MutableMapping[str, str], receive: Receive, limit_mb: float) -> bytes:
    """The whole request body.

    Raises:
        BodyTooLargeError: it is, or says it is, larger than the limit.
        ClientLeftError: the client left before its end.
    """
    limit = int(limit_mb * 1024 * 1024)
    if int(headers.get("content-length") or 0) > limit:
        raise BodyTooLargeError(f"the body is larger than {limit_mb:g} MB (limits.body_mb)")
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        body += message.get("body", b"")
        if len(body) > limit:
            raise BodyTooLargeError(f"the body is larger than {limit_mb:g} MB (limits.body_mb)")
        if not message.get("more_body"):
            return bytes(body)


async def send_whole(send: Send, status: int, headers: RawHeaders, body: bytes) -> None:
    """Send an answer that is complete."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, headers: RawHeaders = ()) -> None:
    """Send OpenAI's error JSON."""
    await send_whole(send, error.status, [*error.headers(), *headers], error.body())


async def unless_client_leaves(work: Awaitable[None], receive: Receive) -> None:
    """Run `work` to its end; cancel it as soon as the client closes the connection.

    Raises:
        ClientLeftError: the client left; `work` has ended by then.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeftError
        await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
