"""GET /health, /ready, /metrics and /v1/models."""

import asyncio
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.errors import UnknownModelError
from server.live import Live
from server.pool import Arm
from server.state import current, key_of

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether requests can be routed: the engine scores, and some replica answers. `problems` says what does not, the
    ledger too, without which requests are answered all the same."""
    body = readiness(request.scope["state"]["live"])
    return JSONResponse(body, 200 if body["ready"] else 503)


def readiness(live: Live) -> dict[str, Any]:
    """What /ready says."""
    state = live.state
    replicas = {
        model.name: {replica.name: replica.healthy for replica in model.replicas} for model in state.pool.models
    }
    engine = state.engine is None or state.engine.ready
    away = [name for name, healthy in replicas.items() if not any(healthy.values())]
    is_ready = engine and len(away) < len(replicas) and not live.draining
    ledger_problem = None if state.ledger is None else state.ledger.problem
    clock_problem = None if state.ledger is None else state.ledger.clock_problem
    problems = [
        *([_problem("gateway", "it drains: it ends when its open requests have")] if live.draining else []),
        *([_problem("keys", state.keys.problem)] if state.keys is not None and state.keys.problem else []),
        *([_problem("budgets", state.budgets.problem)] if state.budgets is not None and state.budgets.problem else []),
        *([] if engine else [_problem("engine", "it is being started again, or joined; nothing can be scored")]),
        *([] if ledger_problem is None else [_problem("ledger", ledger_problem)]),
        *([] if clock_problem is None else [_problem("ledger", clock_problem)]),
        *(_problem(f"models.{name}", "none of its replicas is healthy") for name in away),
    ]
    return {"ready": is_ready, "draining": live.draining, "engine": engine, "replicas": replicas, "problems": problems}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    state = current(request.scope)
    state.pass_on()
    rendered = await asyncio.to_thread(state.metrics.render)
    return Response(rendered, media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """`auto` and the arms, in OpenAI's form."""
    state = current(request.scope)
    data = [_entry("auto"), *(_arm_entry(arm) for arm in state.pool.arms if _may_use(request, arm))]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name}")
async def model(name: str, request: Request) -> Response:
    """One of them."""
    state = current(request.scope)
    if name == "auto":
        return JSONResponse(_entry("auto"))
    index = state.pool.index(name)
    if index is None or not _may_use(request, state.pool.arms[index]):
        raise UnknownModelError(f"model {name!r} does not exist; GET /v1/models lists all", "model")
    return JSONResponse(_arm_entry(state.pool.arms[index]))


def _may_use(request: Request, arm: Arm) -> bool:
    key = key_of(request.scope)
    return key is None or key.arms is None or arm.name in key.arms


def _problem(part: str, message: str) -> dict[str, str]:
    return {"part": part, "message": message}


def _entry(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "pika"}


def _arm_entry(arm: Arm) -> dict[str, Any]:
    return {
        **_entry(arm.name),
        "max_model_len": arm.model.max_context_tokens,
        "pika": {
            "model": arm.model.name,
            "request": dict(arm.request),
            "usd_per_million_tokens": arm.model.prices.model_dump(),
            "probe": arm.probe_name,
            "probe_source": None if arm.artifact is None else arm.artifact.source,
            "probe_from_cache": arm.artifact is not None and arm.artifact.from_cache,
            "success_probability": arm.success_probability,
        },
    }
