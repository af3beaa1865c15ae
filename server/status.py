"""GET /health, /ready, /metrics and /v1/models."""

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST

from server.errors import UnknownModelError
from server.pool import Arm
from server.state import current

router = APIRouter()


@router.get("/health")
async def health() -> Response:
    """The process answers."""
    return JSONResponse({"status": "ok"})


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Whether requests can be routed: the engine scores, and some replica answers. Says which part does not."""
    state = current(request.scope)
    replicas = {
        model.name: {replica.name: replica.healthy for replica in model.replicas} for model in state.pool.models
    }
    engine = state.engine is None or state.engine.ready
    is_ready = engine and any(healthy for model in replicas.values() for healthy in model.values())
    body = {"ready": is_ready, "engine": engine, "replicas": replicas}
    return JSONResponse(body, 200 if is_ready else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Prometheus' text format."""
    state = current(request.scope)
    return Response(state.metrics.render(), media_type=CONTENT_TYPE_LATEST)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """`auto` and the arms, in OpenAI's form."""
    state = current(request.scope)
    data = [_entry("auto"), *(_arm_entry(arm) for arm in state.pool.arms)]
    return JSONResponse({"object": "list", "data": data})


@router.get("/v1/models/{name}")
async def model(name: str, request: Request) -> Response:
    """One of them."""
    state = current(request.scope)
    if name == "auto":
        return JSONResponse(_entry("auto"))
    index = state.pool.index(name)
    if index is None:
        raise UnknownModelError(f"model {name!r} does not exist; GET /v1/models lists all", "model")
    return JSONResponse(_arm_entry(state.pool.arms[index]))


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
