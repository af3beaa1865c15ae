"""What is not routed: every path but the raw routes', through FastAPI. Its answers carry a request id, what is asked of
the gateway itself (`/score`, `/route`) or goes wrong is counted and logged, and an error names the fix. Where keys are
asked for, they are asked for here.
"""

import difflib
import time
from collections.abc import Iterable, Mapping

from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import GatewayError, InvalidKeyError, MethodError, RateLimitError, UnknownPathError
from server.http.asgi import send_error
from server.http.head import read_head
from server.keys.account import Account
from server.keys.known import is_open
from server.record import count_unrouted
from server.state import current

ASKED = {"/score": "score", "/route": "route"}
"""Paths whose requests are always counted and logged, by what `pika_requests_total` calls them."""


class Unrouted:
    """
    Args:
        app: answers.
        routes: all that there are, the raw ones included.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self.app = app
        self.methods: Mapping[str, list[str]] = _methods(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(scope, send)
        error = answer.refused() or self._refused(scope)
        if error is not None:
            await send_error(answer.send, error)
        else:
            # FastAPI answers GET alone; the connection leaves the body out.
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            await self.app({**scope, "method": method}, receive, answer.send)

    def _refused(self, scope: Scope) -> GatewayError | None:
        """Where no route takes it, or it could be read in two ways: nothing that is written plainly is also encoded."""
        path, method = scope["path"], scope["method"]
        allowed = self.methods.get(path)
        if allowed is None:
            return None
        if b"%" in scope["raw_path"]:
            return UnknownPathError(scope["raw_path"].decode(), path)
        if method not in allowed and not (method == "HEAD" and "GET" in allowed):
            return MethodError(method, path, allowed)
        return None

    def unknown(self, scope: Scope) -> UnknownPathError:
        """No route has this path; the error names the one that is nearest."""
        near = difflib.get_close_matches(scope["path"].rstrip("/"), self.methods, n=1)
        return UnknownPathError(scope["path"], f"{self.methods[near[0]][0]} {near[0]}" if near else None)


class _Answer:
    """Passes an answer on with the request's id, counted and logged."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._began = time.perf_counter()
        self._account: Account | None = None

    def refused(self) -> GatewayError | None:
        """Where the request bears no valid key, or too often. Of every path that is not open, known or not: none can
        forget to ask."""
        state = current(self._scope)
        if state.keys is None or is_open(self._scope["path"]):
            return None
        try:
            account = self._account = state.account(read_head(self._scope["headers"]))
            if account is not None:
                self._scope["user_key"] = account.key
                account.count_request()
        except (InvalidKeyError, RateLimitError) as error:
            return error
        return None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            own = [value for name, value in headers if name == b"x-request-id"]
            request_id = own[0].decode() if own else read_head(self._scope["headers"]).request_id
            if not own:
                headers.append((b"x-request-id", request_id.encode()))
            lines = b"" if self._account is None else self._account.lines()
            self._count(request_id, message["status"])
            message = {**message, "headers": headers, "lines": lines}
        await self._send(message)

    def _count(self, request_id: str, status: int) -> None:
        asked = ASKED.get(self._scope["path"])
        # Health checks and dashboards ask all the time: /ready's 503 is an answer like another.
        if asked is not None or (status >= 400 and self._scope["path"] != "/ready"):
            duration_s = time.perf_counter() - self._began
            count_unrouted(current(self._scope).metrics, request_id, status, asked or "none", duration_s)


def _methods(routes: Iterable[BaseRoute]) -> dict[str, list[str]]:
    """Of every path that stands for itself alone."""
    methods: dict[str, list[str]] = {}
    for route in routes:
        if isinstance(route, Route) and "{" not in route.path:
            methods.setdefault(route.path, []).extend(sorted((route.methods or set()) - {"HEAD"}))
    return methods
