"""create_app(settings): builds the parts, opens them in `lifespan`, and mounts the routes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server import admin, score, status
from server.chat import Chat
from server.chat_request import parse_chat, parse_completion
from server.config import Settings
from server.dashboard import routes as dashboard
from server.errors import INTERNAL_ERROR, GatewayError, MethodError, error_body
from server.http.unrouted import Unrouted
from server.live import Live, Order
from server.openapi import document
from server.other_request import PATHS, parse_other
from server.outcomes import endpoint as outcomes


class Gateway(FastAPI):
    """A FastAPI application whose raw routes are reached without its middleware, which costs a tenth of a request."""

    def __init__(self, raw: Mapping[str, ASGIApp], **options: Any) -> None:
        # No page of documentation, whose scripts would come from elsewhere: /openapi.json has it all.
        super().__init__(docs_url=None, redoc_url=None, redirect_slashes=False, **options)
        self.raw = {path.encode(): app for path, app in raw.items()}
        # They stand in its own table too, for other methods' answers.
        self.router.routes += [Route(path, app, methods=["POST"]) for path, app in raw.items()]
        self.unrouted: Unrouted | None = None
        """Once all routes are there."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document(super().openapi())
        return super().openapi()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await super().__call__(scope, receive, send)
        # As it was sent: a path that is percent-encoded is none of these.
        app = self.raw.get(scope["raw_path"]) if scope["method"] == "POST" else None
        if app is None:
            app = self.unrouted = self.unrouted or Unrouted(super().__call__, self.routes)
        await app(scope, receive, send)


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application. `app.state.live.reload(...)` swaps settings and probes.

    Raises:
        ConfigError: the configuration does not fit together.
        ProbeError: a probe does not load or does not fit its probe model.
    """
    return app_of(Live(Order(settings)))


def app_of(live: Live) -> FastAPI:
    """The routes, and the parts behind them, opened in `lifespan`."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Live]]:
        await live.open()
        try:
            yield {"live": live}
        finally:
            await live.close()

    raw: dict[str, ASGIApp] = {"/v1/chat/completions": Chat(parse_chat), "/v1/completions": Chat(parse_completion)}
    raw |= {path: Chat(partial(parse_other, path)) for path in PATHS}
    app = Gateway(raw, title="PIKA Router", lifespan=lifespan)
    app.state.live = live
    app.include_router(admin.router)
    app.include_router(dashboard.page)
    app.include_router(dashboard.data)
    app.include_router(score.router)
    app.include_router(outcomes.router)
    app.include_router(status.router)
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    return app


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return Response(error.body(), error.status, {name.decode(): value.decode() for name, value in error.headers()})


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths, and methods of paths with a name in them, in the same form as all other errors."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and request.app.unrouted is not None:
        return await _gateway_error(request, request.app.unrouted.unknown(request.scope))
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "GET").split(", ")
        return await _gateway_error(request, MethodError(request.method, request.scope["path"], allowed))
    return Response(
        error_body(str(error.detail), "invalid_request_error"), error.status_code, error.headers, "application/json"
    )


async def _internal_error(request: Request, _: Exception) -> Response:
    """A bug of ours; Starlette logs it."""
    return await _gateway_error(request, GatewayError(INTERNAL_ERROR))
