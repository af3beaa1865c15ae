"""The little of HTTP that our raw ASGI routes need: read a bounded body, send an answer."""

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from server.errors import (
    BadRequestError,
    BodyTooLargeError,
    ClientLeftError,
    EncodingError,
    ForeignPageError,
    GatewayError,
)
from server.http.bodies import Held
from server.http.head import Headers, Lines, RequestHead
from server.http.loopback import LOCAL_PAGE
from server.state import State

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

ENCODINGS = {
    b"": 0,
    b"identity": 0,
    b"gzip": zlib.MAX_WBITS + 16,
    b"x-gzip": zlib.MAX_WBITS + 16,
    b"deflate": zlib.MAX_WBITS,
}
"""zlib's window bits by content-encoding; 0 where nothing is to be done."""


async def read_body(head: RequestHead, receive: Receive, state: State, held: Held) -> bytes:
    """The whole request body, decompressed.

    Args:
        held: counts it among all that are held.

    Raises:
        BodiesError: too many bytes are held.
        SlowBodyError: it did not come in time.
        ForeignPageError: a browser sends it for a page of another site, and the gateway is not public.
        BodyTooLargeError: it is, or says it is, larger than `limits.body_mb`, compressed or not.
        EncodingError: it is compressed in another way than gzip and deflate.
        BadRequestError: it is not compressed as it says.
        ClientLeftError: the client left before its end.
    """
    if head.origin and not state.settings.server.public and not LOCAL_PAGE.fullmatch(head.origin):
        raise ForeignPageError(head.origin.decode("latin-1"))
    limit = state.most_body_bytes
    if head.content_length > limit:
        raise BodyTooLargeError(state.settings.limits.body_mb)
    bits = ENCODINGS.get(head.content_encoding)
    if bits is None:
        raise EncodingError(head.content_encoding.decode("latin-1"))
    held.expect(head.content_length)
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
            raise BodyTooLargeError(state.settings.limits.body_mb)
        held.grow(size)
        if not message.get("more_body"):
            break
    body: bytes = part if len(parts) == 1 else b"".join(parts)
    if not bits:
        return body
    try:
        # In a thread: ten megabytes take a while.
        body = await asyncio.to_thread(_decompress, body, bits, limit)
    except OverflowError:
        raise BodyTooLargeError(state.settings.limits.body_mb) from None
    except zlib.error as error:
        raise BadRequestError(f"the body is not compressed as content-encoding says: {error}") from None
    held.grow(len(body))
    return body


def _decompress(body: bytes, bits: int, limit: int) -> bytes:
    """
    Raises:
        OverflowError: what comes out is larger than `limit` bytes; no more than that is ever held.
        zlib.error: the body is broken.
    """
    machine = zlib.decompressobj(bits)
    data = machine.decompress(body, limit + 1)
    if len(data) > limit:
        raise OverflowError
    if not machine.eof:
        raise zlib.error("it ends early")
    if machine.unused_data:
        raise zlib.error("something follows its end; compress it as one piece")
    return data


async def send_whole(send: Send, status: int, headers: Headers, body: bytes, lines: Lines = b"") -> None:
    """Send an answer that is complete.

    Args:
        lines: further headers.
    """
    headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers, "lines": lines})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: GatewayError, lines: Lines = b"") -> None:
    """Send OpenAI's error JSON.

    Args:
        lines: headers beside the error's own.
    """
    await send_whole(send, error.status, error.headers(), error.body(), lines)
