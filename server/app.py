"""create_app(settings): builds the parts, opens them in `lifespan`, and mounts the routes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec

import httpx
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from probes.engine.base import Engine
from probes.engine.process import BatchReport, ProcessEngine
from server import score, status
from server.chat import Chat
from server.config import ConfigError, Settings
from server.errors import INTERNAL_ERROR, GatewayError, error_body
from server.http import read_headers, request_id
from server.metrics import Metrics
from server.policies import Policies
from server.pool import Pool, build_pool, check_health, watch_health
from server.predictor import Predictor
from server.state import State

KEEPALIVE_EXPIRY_S = 2.0
"""Idle upstream connections are dropped well before vLLM drops them, after 5 s: none closes under a request."""


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application.

    Raises:
        ConfigError: the configuration does not fit together.
        ProbeError: a probe does not load or does not fit its probe model.
    """
    pool = build_pool(settings)
    policies = Policies(settings, pool.tier_cost)
    if pool.artifacts and find_spec("torch") is None:
        raise ConfigError("probes need torch: pip install 'pika-router[engine]', or give arms a success_probability")
    predictor = Predictor(pool, settings)
    metrics = Metrics(pool, policies.name)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, State]]:
        engine = _engine(pool, settings, metrics)
        limits = httpx.Limits(keepalive_expiry=KEEPALIVE_EXPIRY_S)
        async with httpx.AsyncClient(limits=limits, trust_env=False) as client:
            replicas = [replica for model in pool.models for replica in model.replicas]
            await asyncio.gather(*(check_health(replica, client) for replica in replicas))
            if engine is not None:
                await engine.start()
            watcher = asyncio.create_task(watch_health(pool, client))
            try:
                yield {"pika": State(settings, pool, policies, predictor, engine, client, metrics)}
            finally:
                watcher.cancel()
                with suppress(asyncio.CancelledError):
                    await watcher
                if engine is not None:
                    await engine.close()

    app = FastAPI(title="PIKA Router", lifespan=lifespan)
    app.router.routes.append(Route("/v1/chat/completions", Chat(), methods=["POST"]))
    app.include_router(score.router)
    app.include_router(status.router)
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    return app


def _engine(pool: Pool, settings: Settings, metrics: Metrics) -> Engine | None:
    if not pool.artifacts:
        return None

    def on_batch(report: BatchReport) -> None:
        metrics.queue_s.observe(report.queue_s)
        metrics.batch_prompts.observe(report.prompts)
        metrics.batch_tokens.observe(report.tokens)
        metrics.padding.inc(report.padding_tokens)

    return ProcessEngine(
        pool.artifacts,
        device=settings.engine.device,
        queue_prompts=settings.engine.queue.prompts,
        queue_tokens=settings.engine.queue.tokens,
        on_batch=on_batch,
    )


async def _gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    headers = {name.decode(): value.decode() for name, value in error.headers()}
    headers["x-request-id"] = request_id(read_headers(request.scope))
    return Response(error.body(), error.status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in the same form as all other errors."""
    assert isinstance(error, HTTPException)
    body = error_body(str(error.detail), "invalid_request_error")
    headers = {**(error.headers or {}), "x-request-id": request_id(read_headers(request.scope))}
    return Response(body, error.status_code, headers, "application/json")


async def _internal_error(request: Request, _: Exception) -> Response:
    """A bug of ours; Starlette logs it."""
    return await _gateway_error(request, GatewayError(INTERNAL_ERROR))
