"""/admin: what the operator may see and do. Off without a key of its own; no secret is ever shown."""

import asyncio
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from server.access import check_admin
from server.config import Settings
from server.errors import ReloadRefusedError
from server.keys.known import Key
from server.live import Live
from server.pool import Arm
from server.state import State, current

REDACTED = "[redacted]"


def _operator(request: Request) -> None:
    check_admin(current(request.scope), request.scope)


router = APIRouter(prefix="/admin", dependencies=[Depends(_operator)])


@router.get("/config")
async def config(request: Request) -> Response:
    """The configuration in force, defaults filled in. Of secrets it holds the variables' names alone."""
    return JSONResponse(redacted(current(request.scope).settings))


@router.get("/probes")
async def probes(request: Request) -> Response:
    """The probe of every arm: where it comes from, its very revision, and what it was trained for."""
    state: State = current(request.scope)
    return JSONResponse({"arms": {arm.name: _probe(arm) for arm in state.pool.arms}})


@router.post("/reload")
async def reload(request: Request) -> Response:
    """Read configuration, probes and keys again, as SIGHUP does: all of it is taken, by all workers, or nothing."""
    live: Live = request.scope["state"]["live"]
    if not await live.reread():
        raise ReloadRefusedError(f"all stays as it was: {live.refusal}")
    return JSONResponse({"reloaded": True})


@router.get("/keys")
async def keys(request: Request) -> Response:
    """Users' keys: what each may do, and what it has spent of its budgets; no key, and no hash of one."""
    state: State = current(request.scope)
    ring = state.keys
    if ring is None:
        return JSONResponse({"keys": None, "problem": None})
    spent: dict[str, Any] = {}
    if state.budgets is not None:
        spent = await asyncio.to_thread(state.budgets.known, ring.keys)
    return JSONResponse(
        {"keys": {key.name: _key(key, spent.get(key.name)) for key in ring.keys}, "problem": ring.problem}
    )


def _key(key: Key, spent: Any) -> dict[str, Any]:
    """
    Args:
        spent: USD by period; None where nobody knows now.
    """
    return {
        "arms": None if key.arms is None else list(key.arms),
        "policies": None if key.policies is None else sorted(key.policies),
        "routing": dict(key.knobs),
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "budgets_usd": dict(key.budgets_usd),
        "spent_usd": spent if key.budgets_usd else None,
    }


def redacted(settings: Settings) -> dict[str, Any]:
    """As JSON, without what the environment of launched servers holds."""
    shown = settings.model_dump(mode="json", by_alias=True, exclude_none=True)
    for model in shown["models"].values():
        for replica in model["replicas"]:
            launch = replica.get("launch")
            if launch is not None:
                launch["env"] = dict.fromkeys(launch["env"], REDACTED)
    return shown


def _probe(arm: Arm) -> dict[str, Any] | None:
    """None where a constant stands in for a probe."""
    if arm.artifact is None:
        return None
    card = arm.artifact.card
    return {
        "probe": card.probe_name,
        "revision": arm.artifact.revision,
        "source": arm.artifact.source,
        "from_cache": arm.artifact.from_cache,
        "mismatches": list(arm.artifact.mismatches),
        "calibrated": not arm.uncalibrated,
        **card.model_dump(mode="json", by_alias=True, include={"pass_", "target"}),
    }
