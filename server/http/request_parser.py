"""A client's requests as llhttp finds them in what comes, their heads bounded and read in one way only."""

from enum import Enum, auto
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn, cast
from urllib.parse import unquote

import httptools

from server.errors import GatewayError, HeadTooLargeError, InvalidHTTPError, VersionError
from server.http.cycle import Cycle
from server.live import Live

if TYPE_CHECKING:
    from server.http.connection import Connection

MAX_HEADERS = 128
HIGH_WATER_BYTES = 2**16
"""Where so much of a body waits to be read, no more is taken in."""
OF_MEANING = frozenset((b"host", b"expect", b"transfer-encoding"))
"""Headers that say how the rest of a request is to be read."""
BODY_HEADERS = (b"content-length", b"transfer-encoding")


class Part(Enum):
    """What is expected next from the client."""

    IDLE = auto()
    HEAD = auto()
    BODY = auto()


IDLE, HEAD, BODY = Part  # an enum's attribute takes ten times as long as a name


class RefusedError(Exception):
    """Raised in the parser's callbacks, which ends its work."""


class RequestParser:
    """The half of a connection that reads.

    Args:
        app_state: uvicorn's; requests find it, and the connection, in their scope.
    """

    def __init__(self, app_state: dict[str, Any]) -> None:
        self.live: Live = app_state["live"]
        self.app_state = {**app_state, "connection": self}
        self.server: tuple[str, int] | None = None
        self.client: tuple[str, int] | None = None
        self._limits = self.live.state.settings.limits  # as they were when the client came
        self._head_bytes = self._limits.head_kb * 1024
        self._parser = httptools.HttpRequestParser(self)
        # Whether the connection goes on is for us to say: llhttp would also go by a trailer, and read no more.
        self._parser.set_dangerous_leniencies(lenient_keep_alive=True)
        self._incoming: Cycle | None = None
        """Whose body comes in."""
        self._part = IDLE
        self._part_bytes = 0
        """Raw bytes of the part so far, those before it in its first delivery included."""
        self._framed_bytes = 0
        """Of a body's raw bytes those up to its own last one: beyond are a chunk's head, or trailers."""
        self._delivery_bytes = 0
        self._timed = False
        """Whether the part's time runs."""
        self._refusal: GatewayError | None = None
        """Why we have the parser end its work."""

    def come(self, cycle: Cycle) -> None:
        """A request's head is here.

        Raises:
            RefusedError: too many wait already.
        """
        raise NotImplementedError

    def keeps_alive(self) -> bool:
        """Whether the client may go on with the connection."""
        raise NotImplementedError

    def pause_reading(self) -> None:
        """More has come than is read."""
        raise NotImplementedError

    def go_on_reading(self) -> None:
        """Nothing more comes of this request: what is read from now on says that the client leaves, or asks again."""
        raise NotImplementedError

    def _feed(self, data: bytes) -> None:
        """
        Raises:
            httptools.HttpParserError: it is no HTTP, or we refuse it.
        """
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:  # which we do not make, as HTTP allows
                data = data[upgrade.args[0] :]

    # Called by llhttp

    def on_message_begin(self) -> None:
        self._part, self._part_bytes, self._timed = HEAD, 0, False
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._hosts = 0
        self._expects_continue = False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is not HEAD:
            return  # a trailer
        name = name.lower()
        if name in OF_MEANING:
            self._heed(name, value)
        self._headers.append((name, value))
        if len(self._headers) > MAX_HEADERS:
            self._refuse_head(HeadTooLargeError(self._limits.head_kb, MAX_HEADERS))

    def on_headers_complete(self) -> None:
        version = self._parser.get_http_version()
        self._check_head(version)
        raw_path, path, query = self._target()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": self._parser.get_method().decode(),
            "scheme": "http",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "server": self.server,
            "client": self.client,
            "state": self.app_state,
        }
        keep_alive = version == "1.1" and self._parser.should_keep_alive() and self.keeps_alive()
        cycle = Cycle(cast("Connection", self), scope, keep_alive)
        cycle.expects_continue = self._expects_continue and version == "1.1"
        self.come(cycle)
        self._incoming = cycle
        self._part, self._part_bytes, self._framed_bytes, self._timed = BODY, 0, 0, False

    def on_body(self, body: bytes) -> None:
        assert self._incoming is not None
        self._framed_bytes = self._part_bytes
        if not self._incoming.complete and self._incoming.feed(body) > HIGH_WATER_BYTES:
            self.pause_reading()

    def on_message_complete(self) -> None:
        assert self._incoming is not None
        self._part = IDLE
        self._incoming.end_of_body()
        self._incoming = None
        self.go_on_reading()

    def _heed(self, name: bytes, value: bytes) -> None:
        """
        Raises:
            RefusedError: the body's framing is another than ours.
        """
        if name == b"host":
            self._hosts += 1
        elif name == b"expect":
            self._expects_continue = value.lower() == b"100-continue"
        elif value.strip().lower() != b"chunked":
            # Of other codings llhttp takes the last for the framing, and who reads the body would not undo the first.
            self._refuse_head(InvalidHTTPError("transfer-encoding is chunked, and nothing else"))

    def _check_head(self, version: str) -> None:
        """
        Raises:
            RefusedError: we do not take such a request.
        """
        limit = self._head_bytes
        if (self._part_bytes > limit or self._delivery_bytes > limit) and len(self._url) + sum(
            len(name) + len(value) for name, value in self._headers
        ) > limit:
            self._refuse_head(HeadTooLargeError(self._limits.head_kb, MAX_HEADERS))
        if version not in ("1.1", "1.0"):
            self._refuse_head(VersionError(version))
        if self._hosts > 1 or (self._hosts == 0 and version == "1.1"):
            self._refuse_head(InvalidHTTPError("a request has one host header"))
        if self._parser.should_upgrade() and any(name in BODY_HEADERS for name, _ in self._headers):
            # llhttp would take the body for another protocol's bytes.
            why = "no other protocol is spoken here: send bodies without the header upgrade"
            self._refuse_head(InvalidHTTPError(why))

    def _target(self) -> tuple[bytes, str, bytes]:
        """Path as it was sent, decoded, and query.

        Raises:
            RefusedError: there is no path.
        """
        try:
            return _split(self._url)
        except (httptools.HttpParserError, ValueError):
            self._refuse_head(InvalidHTTPError("the request's target is no path in ASCII, or has a fragment"))

    def _refuse_head(self, error: GatewayError) -> NoReturn:
        """Have the parser end its work, for this reason.

        Raises:
            RefusedError: always.
        """
        self._refusal = error
        raise RefusedError


@lru_cache(maxsize=64)  # of most requests it is one of few
def _split(target: bytes) -> tuple[bytes, str, bytes]:
    """
    Raises:
        httptools.HttpParserError, ValueError: there is no path.
    """
    url = httptools.parse_url(target)
    path = url.path or (url.host and b"/")
    if path is None or b"#" in target:  # which would be one more spelling of a path
        raise ValueError("no path, or more than that")
    return path, unquote(path.decode("ascii")), url.query or b""
