"""Heads of requests and answers, read in one go: what we need of them, and what passes on."""

import os
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.keys.known import Key

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, as ASGI has them; repeated ones each for itself, in order."""

Lines = bytes
"""Headers as they are sent, each with its line's end. Nobody looks at them any more: where they come from they were
looked at, by `lines_of`, or are ours word for word."""

OURS = b"x-pika-"
HOP_BY_HOP = (
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
)
NOT_FORWARDED = frozenset(
    (
        *HOP_BY_HOP,
        b"host",
        b"content-length",
        b"content-type",
        b"content-encoding",
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"accept-encoding",
        b"expect",
        b"x-request-id",
    )
)
NOT_RETURNED = frozenset((*HOP_BY_HOP, b"content-length", b"date", b"server", b"x-request-id"))
RANDOM_BYTES = 10
RANDOM: list[str] = []
"""Parts of ids that are not yet used."""
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


@dataclass(slots=True)
class RequestHead:
    """What we need of a request's headers; of a repeated one the last."""

    request_id: str = ""
    """The client's own where it is a harmless token, else a new one."""
    content_type: bytes = b""
    content_encoding: bytes = b""
    """In lower case."""
    origin: bytes = b""
    """The site whose page asks, where a browser says so."""
    session: bytes = b""
    """What the client calls its conversation."""
    content_length: int = 0
    """0 where it does not say; what is no number is the server's to refuse."""
    secret: bytes = field(default=b"", repr=False)
    """The client's key: a bearer's, else what other vendors' clients send as `x-api-key` or `api-key`."""
    key: "Key | None" = None
    """What the secret opens, once it has been checked; None where nothing asks for keys."""
    knobs: dict[str, str] = field(default_factory=dict)
    """The `x-pika-*` headers."""
    passed: Lines = b""
    """What the upstream gets, in their order: ours, the hop's and the client's key are taken out."""


def read_head(headers: Iterable[tuple[bytes, bytes]]) -> RequestHead:
    """
    Args:
        headers: as ASGI has them.
    """
    head = RequestHead()
    passed: Headers = []
    listed: set[bytes] = set()
    for line in headers:
        name, value = line
        if name not in NOT_FORWARDED:
            if name.startswith(OURS):
                head.knobs[name.decode("latin-1")] = value.decode("latin-1")
                continue
            passed.append(line)
            if name == b"origin":
                head.origin = value
            elif name == b"x-session-id":
                head.session = value
        elif name == b"content-length":
            head.content_length = int(value[:20]) if value.isdigit() else 0
        elif name == b"content-type":
            head.content_type = value
        elif name == b"content-encoding":
            head.content_encoding = value.strip().lower()
        elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            head.request_id = value.decode()
        elif name == b"authorization":
            head.secret = bearer_token(value) or head.secret
        elif name in (b"x-api-key", b"api-key"):
            head.secret = head.secret or value.strip()
        elif name == b"connection":
            listed |= _listed(value)
    if listed:
        passed = [line for line in passed if line[0] not in listed]
    head.passed = b"\r\n".join([*map(b": ".join, passed), b""])  # the parser lets no line's end through
    head.request_id = head.request_id or new_id()
    return head


def lines_of(headers: Iterable[tuple[bytes, bytes]]) -> Lines:
    """
    Raises:
        ValueError: a header has a line's end in it, and could pass for several.
    """
    lines = [*map(b": ".join, headers), b""]
    data, ends = b"\r\n".join(lines), len(lines) - 1
    if data.count(b"\n") != ends or data.count(b"\r") != ends or b"\0" in data:
        raise ValueError("a header has a line's end in it")
    return data


def bearer_token(authorization: bytes) -> bytes:
    """What stands behind `Bearer`; empty where the header is of another kind."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""


def new_id() -> str:
    """Begins with the time, so that a database's index of such ids grows at its end alone."""
    return (time.time_ns() // 1_000_000).to_bytes(6, "big").hex() + _random_hex()


def _random_hex() -> str:
    """The kernel is asked for many at once: asking takes longer than all else here."""
    while True:
        try:
            return RANDOM.pop()
        except IndexError:
            block = os.urandom(RANDOM_BYTES * 256)
            RANDOM.extend(block[at : at + RANDOM_BYTES].hex() for at in range(0, len(block), RANDOM_BYTES))


@dataclass(slots=True)
class AnswerHead:
    """What we need of an answer's headers."""

    content_type: bytes
    """In lower case, without parameters."""
    encoded: bool
    """Whether the body is compressed, although nobody asked."""
    passed: Headers
    """What the client gets of them."""

    @property
    def has_events(self) -> bool:
        """Whether the body is a stream of events that can be read, and added to."""
        return self.content_type == b"text/event-stream" and not self.encoded


def read_answer_head(headers: Headers) -> AnswerHead:
    head = AnswerHead(b"", False, [])
    listed: set[bytes] = set()
    for line in headers:
        name, value = line
        if name not in NOT_RETURNED:
            if name.startswith(OURS):
                continue
            head.passed.append(line)
            if name == b"content-type":
                head.content_type = value.partition(b";")[0].strip().lower()
            elif name == b"content-encoding":
                head.encoded = True
        elif name == b"connection":
            listed |= _listed(value)
    if listed:
        head.passed = [line for line in head.passed if line[0] not in listed]
    return head


def _listed(connection: bytes) -> set[bytes]:
    """Headers that a `connection` header declares to be for this hop alone."""
    return {token.strip().lower() for token in connection.split(b",")} - {b"keep-alive", b"close", b""}
