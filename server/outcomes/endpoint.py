"""POST /v1/outcomes: how right an answer was, as a client, a user or a verifier found."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from server.chat_request import parse_json
from server.config import Settings
from server.errors import (
    BadRequestError,
    LedgerAwayError,
    LedgerOffError,
    NotAnsweredError,
    TooManySourcesError,
    UnknownDecisionError,
)
from server.http.asgi import read_body
from server.http.head import read_head
from server.keys.known import Key
from server.ledger.outcome import MAX_SOURCES, Outcome
from server.metrics import Metrics
from server.pool import Pool
from server.state import current, key_of

if TYPE_CHECKING:  # SQLAlchemy is loaded where there is a ledger
    from server.ledger.writer import Writer
    from server.outcomes.recorder import OutcomeRecorder

router = APIRouter()

FIELDS = ("id", "correct", "source")
ID = re.compile(r"[!-~]{1,256}")
SOURCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
ANSWER_S = 10.0
"""So long the ledger may take."""


@router.post("/v1/outcomes")
async def outcomes(request: Request) -> Response:
    """Record how right an answer was; the same again changes nothing, another value replaces it."""
    state = current(request.scope)
    head = read_head(request.scope["headers"])
    with state.admit() as watch:
        body = parse_json(await read_body(head, request.receive, state, watch.body))
    outcome = _outcome(body, key_of(request.scope))
    if state.outcomes is None or state.settings.ledger is None:
        raise LedgerOffError
    try:
        async with asyncio.timeout(ANSWER_S):
            recorded = await asyncio.wrap_future(state.outcomes.put(outcome))
    except TimeoutError:
        raise LedgerAwayError("the ledger is too slow; whether it has the outcome is unknown: send it again") from None
    if recorded is None:
        raise UnknownDecisionError(_unknown(outcome.id, state.settings), "id")
    if recorded.code != 200:
        raise NotAnsweredError(f"request {recorded.request_id} ended with {recorded.code}: there is no answer to judge")
    if recorded.full:
        raise TooManySourcesError(
            f"{MAX_SOURCES} sources have spoken of request {recorded.request_id}, which is all that are kept of one "
            "answer; each of them may still change what it said",
            "source",
        )
    return JSONResponse(
        {
            "request_id": recorded.request_id,
            "arm": recorded.arm,
            "source": outcome.source,
            "correct": outcome.correct,
            "success_probability": recorded.success_probability,
            "recorded": recorded.changed,
        },
        headers={"x-request-id": head.request_id},
    )


def _outcome(body: dict[str, Any], key: Key | None) -> Outcome:
    """
    Raises:
        BadRequestError: names the field, and what it must be.
    """
    for field in body:
        if field not in FIELDS:
            raise BadRequestError(f"{field[:100]!r} is unknown: an outcome has {', '.join(FIELDS)}", field[:100])
    id_, correct, source = body.get("id"), body.get("correct"), body.get("source", "client")
    if not isinstance(id_, str) or not ID.fullmatch(id_):
        raise BadRequestError("id must be the answer's x-request-id, or the id in its body", "id")
    if not isinstance(correct, bool | int | float) or not 0 <= correct <= 1:
        raise BadRequestError("correct must be true, false, or a number from 0 to 1", "correct")
    if not isinstance(source, str) or not SOURCE.fullmatch(source):
        raise BadRequestError("source must be up to 64 letters, digits, '.', '_' and '-'", "source")
    return Outcome(id_, source, float(correct), None if key is None else key.name)


def _unknown(id_: str, settings: Settings) -> str:
    assert settings.ledger is not None
    return (
        f"no decision has the id {id_[:128]!r}: send an answer's x-request-id, or the id in its body; decisions are "
        f"kept for {settings.ledger.keep_days:g} days (ledger.keep_days), the latest "
        f"{settings.ledger.max_decisions:,} of them (ledger.max_decisions)"
    )


@asynccontextmanager
async def opened_recorder(
    ledger: "Writer", settings: Settings, pool: Pool, metrics: Metrics
) -> "AsyncIterator[OutcomeRecorder]":
    """What writes outcomes to the ledger."""
    from server.outcomes.recorder import OutcomeRecorder

    arms = [(arm.name, arm.probe_name) for arm in pool.arms]
    recorder = OutcomeRecorder(ledger.database, arms, settings.outcomes, metrics.count_outcome, ledger.flush)
    try:
        yield recorder
    finally:
        await asyncio.to_thread(recorder.close)
