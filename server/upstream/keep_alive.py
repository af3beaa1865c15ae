"""Keep-alive HTTP/1.1 to one upstream server: a request's bytes out, the answer's bytes back as they come.

    upstream = Upstream("http://127.0.0.1:8101/v1", {})
    connection = await upstream.send(upstream.head("/v1/chat/completions") + rest_of_request, connect_s=2)
    answer = await connection.whole(limit=2**20, until=upstream.now() + 60)
    connection.finish()

Errors, all of them `ExchangeError`:

UnreachableError   no connection: refused, unknown name, TLS, or not within connect_s
SilentError        nothing came in time
BrokenError        the connection ended early, or what came is no HTTP answer
└── StaleError     the same on a kept connection, which the server closed while it was idle: send again
"""

import asyncio
import os
import ssl
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, urlsplit

import httpx

from server.upstream.connection import BrokenError, Connection, ExchangeError, SilentError, StaleError

__all__ = ["BrokenError", "ExchangeError", "SilentError", "StaleError", "UnreachableError", "Upstream"]

KEEPALIVE_EXPIRY_S = 2.0
"""Idle connections are dropped well before vLLM drops them, after 5 s: none closes under a request."""
MAX_IDLE = 256
"""More idle connections to one server are closed at once; those in use are bounded by `limits.in_flight`."""
TICK_S = 0.1
"""One timer looks after all connections' deadlines, which are kept to that precision."""


class UnreachableError(ExchangeError):
    """There is no connection to be had."""


def tls_context() -> ssl.SSLContext:
    """Trusts what SSL_CERT_FILE or SSL_CERT_DIR hold, else certifi's authorities."""
    return _tls_context(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"))


@lru_cache(maxsize=1)  # it takes a while to read
def _tls_context(*_: str | None) -> ssl.SSLContext:
    return httpx.create_ssl_context()


class Upstream:
    """Connections to one server.

    Args:
        url: base URL, http or https, ending in /v1.
        headers: sent with every request; holds the key.
    """

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.tls = parts.scheme == "https"
        self.port = parts.port or (443 if self.tls else 80)
        self._root = quote(parts.path.removesuffix("/v1"), safe="/%")
        fields = {"host": parts.netloc, **headers}
        self._fields = "".join(f"{name}: {value}\r\n" for name, value in fields.items()).encode("latin-1")
        self._heads: dict[str, bytes] = {}
        self._context = tls_context() if self.tls else None
        self._loop: asyncio.AbstractEventLoop
        self._all: set[Connection] = set()
        self._idle: list[Connection] = []  # the last one in is the first one out
        self._ticking: asyncio.TimerHandle | None = None

    def head(self, path: str) -> bytes:
        """The part of a POST request's head that is always the same; the request's own header lines follow.

        Args:
            path: one of few that we know, such as /v1/chat/completions.
        """
        head = self._heads.get(path)
        if head is None:
            head = self._heads[path] = self._head("POST", path)
        return head

    def _head(self, method: str, path: str) -> bytes:
        return f"{method} {self._root}{path} HTTP/1.1\r\n".encode("ascii") + self._fields

    async def send(self, request: bytes, connect_s: float, fresh: bool = False) -> Connection:
        """Send a whole request on an idle connection, else on a new one. Call the connection's `finish` in the end.

        Args:
            fresh: take no kept connection, which may be stale.

        Raises:
            UnreachableError: no connection within `connect_s`.
        """
        if self._idle and not fresh:
            connection = self._idle.pop()
            connection.begin(request, reused=True)
        else:
            connection = await self._connect(connect_s)
            connection.begin(request, reused=False)
        return connection

    async def get(self, path: str, limit: int | None, within_s: float) -> tuple[int, bytes]:
        """Status and body.

        Args:
            limit: of the body, in bytes; None: it is not read.
            within_s: for all of it.

        Raises:
            ExchangeError
        """
        request = self._head("GET", path) + b"accept-encoding: identity\r\n\r\n"
        until = asyncio.get_running_loop().time() + within_s
        try:
            return await self._get(request, limit, until, fresh=False)
        except StaleError:
            return await self._get(request, limit, until, fresh=True)

    async def _get(self, request: bytes, limit: int | None, until: float, fresh: bool) -> tuple[int, bytes]:
        connection = await self.send(request, until - asyncio.get_running_loop().time(), fresh)
        try:
            await connection.head(until)
            return connection.status, b"" if limit is None else await connection.whole(limit, until)
        finally:
            connection.finish()

    async def _connect(self, connect_s: float) -> Connection:
        self._loop = asyncio.get_running_loop()
        # uvloop leaves a connection open whose handshake is cancelled: the handshake has a time limit of its own.
        handshake_s = connect_s if self.tls else None
        try:
            async with asyncio.timeout(connect_s + (handshake_s or 0)):
                _, connection = await self._loop.create_connection(
                    lambda: Connection(self._returned, self._lost),
                    self.host,
                    self.port,
                    ssl=self._context,
                    ssl_handshake_timeout=handshake_s,
                )
        except ssl.SSLError as error:
            raise UnreachableError(f"TLS: {error.reason or error}") from error
        except TimeoutError as error:
            raise UnreachableError(f"no connection within {connect_s:g} s") from error
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that no DNS takes
            raise UnreachableError(str(error)) from error
        self._all.add(connection)
        if self._ticking is None:
            self._tick()
        return connection

    def _returned(self, connection: Connection) -> bool:
        """A connection whose exchange is over asks whether to stay."""
        if len(self._idle) >= MAX_IDLE:
            return False
        connection.deadline = self._loop.time() + KEEPALIVE_EXPIRY_S
        self._idle.append(connection)
        return True

    def _lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _tick(self) -> None:
        now = self._loop.time()
        for connection in [one for one in self._all if one.deadline < now]:
            connection.expire()
        self._ticking = self._loop.call_later(TICK_S, self._tick) if self._all else None

    def close(self) -> None:
        """Close all connections, idle or not."""
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        for connection in list(self._all):
            connection.abort()
