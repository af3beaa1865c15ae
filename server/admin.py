"""/admin: what the operator may see and do. Off without a key of its own; no secret is ever shown."""

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from server.access import check_admin
from server.config import Settings
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
