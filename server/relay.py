"""One upstream exchange: the request's bytes out, the answer's bytes back."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

import httpx

from server.pool import Replica
from server.sections import Limits

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A non-streamed answer is held until it is whole, so that a broken one can still be tried elsewhere."""

HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)
NOT_FORWARDED = HOP_BY_HOP | {"host", "content-length", "content-type", "authorization", "accept-encoding", "expect"}
NOT_RETURNED = HOP_BY_HOP | {"content-length", "date", "server", "x-request-id"}

Outcome = Literal["server_error", "connect_error", "timeout", "broken"]


class AttemptError(Exception):
    """No usable first byte came from this replica; another may be tried."""

    def __init__(self, outcome: Outcome, message: str, answer: "Answer | None" = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.answer = answer
        """The upstream's own error, where it gave one."""


class BrokenStreamError(Exception):
    """The upstream failed after its first byte."""


@dataclass
class Answer:
    """An upstream's answer: whole, or a stream whose first chunk is here."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    """The whole body, or a stream's first chunk."""
    stream: AsyncIterator[bytes] | None = None
    """The chunks after the first; None where the body is whole."""
    response: httpx.Response | None = field(default=None, repr=False)

    async def aclose(self) -> None:
        """Close the upstream connection if the answer was not read to its end: this cancels generation."""
        if self.response is not None:
            with suppress(httpx.HTTPError):
                await self.response.aclose()


def forwarded_headers(headers: Mapping[str, str], replica: Replica, request_id: str) -> list[tuple[bytes, bytes]]:
    """The client's headers as the upstream gets them: ours, the hop's and the client's key are taken out."""
    kept = {
        name: value for name, value in headers.items() if name not in NOT_FORWARDED and not name.startswith("x-pika-")
    }
    ours = {"content-type": "application/json", "accept-encoding": "identity", "x-request-id": request_id}
    sent = {**kept, **ours, **replica.headers}
    # As bytes: httpx would refuse what is not ASCII, which HTTP lets a client send.
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in sent.items()]


async def post(
    client: httpx.AsyncClient,
    replica: Replica,
    path: str,
    content: bytes,
    headers: list[tuple[bytes, bytes]],
    limits: Limits,
    first_byte_s: float,
) -> Answer:
    """Send a request to one replica and return once its first byte (stream) or its whole body is here.

    Raises:
        AttemptError: refused, timed out, broken off, or answered with 429 or 5xx.
    """
    timeout = httpx.Timeout(connect=limits.connect_s, read=None, write=first_byte_s, pool=None)
    request = client.build_request("POST", replica.url + path, content=content, headers=headers, timeout=timeout)
    try:
        async with asyncio.timeout(limits.connect_s + first_byte_s):
            response = await client.send(request, stream=True)
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise AttemptError("connect_error", f"{replica.name} cannot be reached") from error
    except (httpx.TimeoutException, TimeoutError) as error:
        raise AttemptError("timeout", f"{replica.name} sent nothing within {first_byte_s:g} s") from error
    except httpx.HTTPError as error:
        raise AttemptError("broken", f"{replica.name} broke off: {type(error).__name__}") from error
    try:
        return await _read(response, replica, limits, first_byte_s)
    except BaseException:
        with suppress(httpx.HTTPError):
            await response.aclose()
        raise


async def _read(response: httpx.Response, replica: Replica, limits: Limits, first_byte_s: float) -> Answer:
    chunks = response.aiter_raw()
    headers = [(name.lower(), value) for name, value in response.headers.raw]
    headers = [(name, value) for name, value in headers if name.decode("latin-1") not in NOT_RETURNED]
    streamed = response.status_code == 200 and response.headers.get("content-type", "").startswith("text/event-stream")
    try:
        async with asyncio.timeout(first_byte_s):
            if streamed:
                first = await anext(chunks, b"")
                if not first:
                    raise AttemptError("broken", f"{replica.name} ended its stream before the first byte")
                return Answer(200, headers, first, _rest(chunks, replica, limits), response)
            body = bytearray()
            async for chunk in chunks:
                body += chunk
                if len(body) > MAX_ANSWER_BYTES:
                    raise AttemptError("broken", f"{replica.name} answered more than {MAX_ANSWER_BYTES} bytes")
    except (httpx.TimeoutException, TimeoutError) as error:
        raise AttemptError("timeout", f"{replica.name} did not finish within {first_byte_s:g} s") from error
    except httpx.HTTPError as error:
        raise AttemptError("broken", f"{replica.name} broke off: {type(error).__name__}") from error
    answer = Answer(response.status_code, headers, bytes(body))
    if response.status_code == 429 or response.status_code >= 500:
        raise AttemptError("server_error", f"{replica.name} answered {response.status_code}", answer)
    return answer


async def _rest(chunks: AsyncIterator[bytes], replica: Replica, limits: Limits) -> AsyncIterator[bytes]:
    """A stream's chunks after the first.

    Raises:
        BrokenStreamError: the upstream broke off or fell silent.
    """
    while True:
        try:
            async with asyncio.timeout(limits.between_chunks_s):
                chunk = await anext(chunks, None)
        except TimeoutError as error:
            raise BrokenStreamError(f"{replica.name} sent nothing for {limits.between_chunks_s:g} s") from error
        except httpx.HTTPError as error:
            raise BrokenStreamError(f"{replica.name} broke off in mid-stream") from error
        if chunk is None:
            return
        yield chunk
