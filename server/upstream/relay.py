"""One upstream exchange: the request's bytes out, the answer's bytes back."""

import re
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from server.http.head import AnswerHead, read_answer_head
from server.pool import Timeouts
from server.upstream.connection import Connection
from server.upstream.keep_alive import BrokenError, ExchangeError, SilentError, StaleError, UnreachableError
from server.upstream.replica import Replica
from server.upstream.sse import parse_usage

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""A non-streamed answer is held until it is whole, so that a broken one can still be tried elsewhere. What all of
them hold together is bounded by `limits.in_flight` alone."""

MAX_CHECKED_BYTES = 256 * 1024
"""A larger answer is not checked to be JSON, which would hold up others."""
JSON = b"application/json"
EVENT = re.compile(rb"\s*[:deir]")
"""How a stream of events begins: a comment, or one of the fields data, event, id and retry, perhaps cut short."""

Outcome = Literal["server_error", "connect_error", "timeout", "broken"]


class AttemptError(Exception):
    """No usable first byte came from this replica; another may be tried."""

    def __init__(self, outcome: Outcome, message: str, answer: "Answer | None" = None) -> None:
        super().__init__(message)
        self.outcome = outcome
        self.answer = answer
        """The upstream's own error, where it gave one."""


@dataclass(slots=True)
class Answer:
    """An upstream's answer: whole, or a stream whose first bytes are here."""

    status: int
    head: AnswerHead
    body: bytes
    """The whole body, or a stream's first bytes."""
    rest: "Rest | None" = None
    """The bytes after the first; None where the body is whole."""
    usage: dict[str, Any] | None = None
    """Of a whole answer, where it says so."""


@dataclass(slots=True)
class Rest:
    """A stream after its first bytes."""

    connection: Connection
    replica: Replica
    between_chunks_s: float

    def until(self) -> float:
        """The loop time by which the next bytes must have come."""
        return self.connection.until(self.between_chunks_s)

    def failed(self, error: ExchangeError) -> str:
        """What became of it, for people."""
        if isinstance(error, SilentError):
            return f"{self.replica.name} sent nothing for {self.between_chunks_s:g} s"
        return f"{self.replica.name} {error} in mid-stream"

    def close(self) -> None:
        """Let go of the connection; this cancels generation if the stream was not read to its end."""
        self.connection.finish()


async def post(replica: Replica, request: bytes, timeouts: Timeouts, stream: bool) -> Answer:
    """Send a request to one replica and return once its first bytes (stream) or its whole body are here.

    Args:
        request: head and body.
        stream: whether a stream was asked for; a whole answer has `total_s` to come.

    Raises:
        AttemptError: refused, timed out, broken off, or answered with 429 or 5xx.
    """
    first_byte_s = timeouts.first_byte_s if stream else timeouts.total_s
    try:
        try:
            answer = await _exchange(replica, request, timeouts, stream, first_byte_s, fresh=False)
        except StaleError:
            answer = await _exchange(replica, request, timeouts, stream, first_byte_s, fresh=True)
    except UnreachableError as error:
        raise AttemptError("connect_error", f"{replica.name} cannot be reached: {error}") from error
    except SilentError as error:
        raise AttemptError("timeout", f"{replica.name} did not answer within {first_byte_s:g} s") from error
    except ExchangeError as error:
        raise AttemptError("broken", f"{replica.name} {error}") from error
    if answer.status == 429 or answer.status >= 500:
        raise AttemptError("server_error", f"{replica.name} answered {answer.status}", answer)
    return answer


async def _exchange(
    replica: Replica, request: bytes, timeouts: Timeouts, stream: bool, first_byte_s: float, fresh: bool
) -> Answer:
    connection = await replica.upstream.send(request, timeouts.connect_s, fresh)
    until = connection.until(first_byte_s)
    kept = False
    try:
        if stream:
            await connection.head(until)
            head = read_answer_head(connection.headers)
            if connection.status == 200 and head.content_type != JSON:
                first = await connection.some(until)
                if not first:
                    raise BrokenError("ended its stream before the first byte")
                if head.has_events and not EVENT.match(first):
                    raise BrokenError("sent what is no stream of events")
                kept = True
                return Answer(200, head, first, Rest(connection, replica, timeouts.between_chunks_s))
            # One document after all: of no use to anybody before its end, and it may still be generated.
            until = connection.until(timeouts.total_s)
        body = await connection.whole(MAX_ANSWER_BYTES, until)
        if connection.status > 599:
            raise BrokenError(f"answered with the code {connection.status}, which HTTP does not have")
        head = read_answer_head(connection.headers)
        usage = _checked_usage(head, body) if connection.status == 200 else None
        return Answer(connection.status, head, body, usage=usage)
    finally:
        if not kept:
            connection.finish()


def _checked_usage(head: AnswerHead, body: bytes) -> dict[str, Any] | None:
    """
    Raises:
        BrokenError: it says that it is JSON, and is none.
    """
    if head.content_type != JSON or head.encoded:
        return None
    if len(body) > MAX_CHECKED_BYTES:
        return parse_usage(body)
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BrokenError("answered with broken JSON") from error
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return usage if isinstance(usage, dict) else None
