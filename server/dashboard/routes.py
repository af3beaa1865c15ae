"""GET /dashboard: the page. Below it its files, and the JSON that it shows.

Where there is an admin key, the page asks for it; else whoever sits at this machine may look.
"""

import math
from dataclasses import asdict
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import RedirectResponse

from routing_policies.base import load
from routing_policies.utility import Utility
from server import score
from server.access import check_admin, is_loopback
from server.dashboard.counted import read_counted
from server.dashboard.period import PERIODS, Period
from server.dashboard.replicas import replicas_of
from server.errors import BadRequestError, LedgerOffError, OperatorOnlyError, UnknownDecisionError, UnknownPathError
from server.routing.policies import Policies
from server.state import current

if TYPE_CHECKING:
    from server.dashboard.figures import Figures

FOLDER = Path(__file__).parent / "static"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
SAFE = {
    "content-security-policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Whatever a page of ours might be made to say: no script but ours runs, and no other page holds it."""
MAX_LAMBDA = 1e6
COUNTED_S = 2.0
MAX_ID = 2**63 - 1
DEFAULT_PAGE = 20
MAX_PAGE = 100


def _page_may_load(request: Request) -> None:
    """The page itself holds no figures: with an admin key anyone may have it, and is asked for the key."""
    state = current(request.scope)
    if state.admin_sha256 is None and not is_loopback(request.scope):
        raise OperatorOnlyError


def _may_look(request: Request) -> None:
    state = current(request.scope)
    if state.admin_sha256 is not None:
        check_admin(state, request.scope)
    elif not is_loopback(request.scope):
        raise OperatorOnlyError


def _period(period: str = "24h") -> Period:
    if period not in PERIODS:
        raise BadRequestError(f"period must be one of {', '.join(PERIODS)}", "period")
    return PERIODS[period]


def _figures(request: Request) -> "Figures":
    """
    Raises:
        LedgerOffError: there is no ledger.
    """
    state = current(request.scope)
    if state.ledger is None:
        raise LedgerOffError
    from server.dashboard.figures import Figures  # brings SQLAlchemy, which nobody else needs

    return Figures(state.ledger.database, state.dashboard, state.pool.names)


page = APIRouter(include_in_schema=False, dependencies=[Depends(_page_may_load)])
data = APIRouter(prefix="/dashboard/data", include_in_schema=False, dependencies=[Depends(_may_look)])
Asked = Annotated[Period, Depends(_period)]


def _read_files() -> dict[str, tuple[bytes, dict[str, str]]]:
    """Body and headers by path below the folder."""
    files = {}
    for file in FOLDER.rglob("*"):
        if file.suffix in TYPES:
            body = file.read_bytes()
            headers = {
                "content-type": f"{TYPES[file.suffix]}; charset=utf-8",
                "etag": f'"{sha256(body).hexdigest()[:20]}"',
                "cache-control": "no-cache",
                **SAFE,
            }
            files[file.relative_to(FOLDER).as_posix()] = body, headers
    return files


FILES = _read_files()


@page.get("/dashboard")
async def index(request: Request) -> Response:
    """The page."""
    return _file("index.html", request)


@page.get("/dashboard/")
async def slash() -> Response:
    """The page's own links are relative, so that it may lie below a path of a proxy."""
    return RedirectResponse("../dashboard")


@page.get("/dashboard/static/{path:path}")
async def static(path: str, request: Request) -> Response:
    """One of its files."""
    return _file(path, request)


def _file(path: str, request: Request) -> Response:
    if path not in FILES:
        raise UnknownPathError(f"/dashboard/static/{path}", "GET /dashboard")
    body, headers = FILES[path]
    if request.headers.get("if-none-match") == headers["etag"]:
        return Response(status_code=304, headers={name: headers[name] for name in ("etag", "cache-control")})
    return Response(body, headers=headers)


@data.get("/summary")
async def summary(request: Request, period: Asked) -> Response:
    """Money, accuracy and requests; without a ledger those since the start."""
    state = current(request.scope)
    best: str | None
    accuracy: float | None
    if state.ledger is None:
        state.pass_on()
        totals = await state.dashboard.get("counted", COUNTED_S, partial(read_counted, state.metrics, state.pool.names))
        best, accuracy = state.pool.names[int(np.argmax(state.pool.tier_cost))], None
    else:
        figures = _figures(request)
        totals, alone = await figures.totals(period), await figures.best(period)
        best, accuracy = (None, None) if alone is None else (alone.arm, alone.accuracy)
    return _json(
        {
            "ledger": state.ledger is not None,
            "policy": {"name": state.policies.name, "knobs": _knobs(state.policies)},
            "pool": state.pool.names,
            "keys": [] if state.keys is None else sorted(key.name for key in state.keys.keys),
            "best": best,
            "best_expected": accuracy,
            **asdict(totals),
        }
    )


@data.get("/mix")
async def mix(request: Request, period: Asked) -> Response:
    """Requests per arm over time."""
    return _json(await _figures(request).mix(period))


@data.get("/frontier")
async def frontier(request: Request, period: Asked) -> Response:
    """Cost and accuracy of other lambdas and of each arm alone."""
    policy = current(request.scope).policies.default.policy
    lam = policy.lam if isinstance(policy, Utility) and policy.variant == "lambda" else None
    return _json({"lam": lam, **asdict(await _figures(request).frontier(period))})


@data.get("/replay")
async def replay(request: Request, period: Asked) -> Response:
    """One lambda on the same decisions."""
    return _json(await _figures(request).replay(period, _number(request, "lambda", MAX_LAMBDA)))


@data.get("/reliability")
async def reliability(request: Request, period: Asked) -> Response:
    """Outcomes against success probabilities."""
    return _json({"arms": await _figures(request).reliability(period)})


@data.get("/drift")
async def drift(request: Request, period: Asked) -> Response:
    """How unlike the probes' training the prompts were, over time."""
    return _json(await _figures(request).drift(period))


@data.get("/replicas")
async def replicas(request: Request) -> Response:
    """Servers and engine, as they are now."""
    return _json(replicas_of(request.scope["state"]["live"]))


@data.get("/decisions")
async def decisions(request: Request) -> Response:
    """A page of the last decisions."""
    limit = _whole(request, "limit", MAX_PAGE) or DEFAULT_PAGE
    lines, following = await _figures(request).page(limit, _whole(request, "before", MAX_ID))
    return _json({"decisions": lines, "next": following})


@data.get("/decisions/{id_}")
async def decision(id_: str, request: Request) -> Response:
    """One of them in full."""
    found = None
    if id_.isascii() and id_.isdigit() and len(id_) < 20 and int(id_) <= MAX_ID:
        found = await _figures(request).decision(int(id_))
    if found is None:
        raise UnknownDecisionError("there is no such decision, or it is kept no longer (ledger.keep_days)")
    return _json(found)


@data.post("/route")
async def route(request: Request) -> Response:
    """As POST /route, for whoever may see this page: for the user's key of that name, else for one without limits."""
    if (name := request.query_params.get("key")) is not None:
        keyring = current(request.scope).keys
        key = next((one for one in ([] if keyring is None else keyring.keys) if one.name == name), None)
        if key is None:
            raise BadRequestError("there is no key of this name any more", "key")
        request.scope["user_key"] = key
    return await score.route(request)


def _knobs(policies: Policies) -> dict[str, Any]:
    """The knob of the configured policy, as far as somebody would read it."""
    name = load(policies.name).knob
    value = getattr(policies.default.policy, "lam", None) if name == "lambda" else policies.knobs.get(name or "")
    return {} if name is None or value is None else {name: value}


def _json(body: Any) -> Response:
    return Response(orjson.dumps(body), media_type="application/json", headers={"cache-control": "no-store", **SAFE})


def _number(request: Request, name: str, most: float) -> float:
    """
    Raises:
        BadRequestError: it is no number from 0 to `most`.
    """
    try:
        value = float(request.query_params.get(name, ""))
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise BadRequestError(f"{name} must be a number from 0 to {most:g}", name)
    return value


def _whole(request: Request, name: str, most: int) -> int | None:
    """None where it is not given.

    Raises:
        BadRequestError: it is no whole number from 1 to `most`.
    """
    text = request.query_params.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20 and 1 <= int(text) <= most):
        raise BadRequestError(f"{name} must be a whole number from 1 to {most}", name)
    return int(text)
