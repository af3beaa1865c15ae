"""POST /score: difficulty alone. POST /route: the decision alone. Neither sends anything upstream."""

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from probes.engine.base import EngineUnavailableError
from server.chat_request import check_messages, parse_chat, parse_json
from server.errors import BadRequestError, ProbeUnavailableError, TotalTimeError
from server.http.asgi import read_body
from server.http.head import read_head
from server.predictor import Messages, Prediction
from server.routing.decide import decide
from server.routing.decision import Decision
from server.state import State, current, key_of

router = APIRouter()

MAX_INPUTS = 256
"""Conversations in one /score request."""


@router.post("/score")
async def score(request: Request) -> Response:
    """Success probability of every arm for one or more prompts."""
    state = current(request.scope)
    head = read_head(request.scope["headers"])
    with state.admit() as watch:
        total_s = state.settings.limits.total_s
        watch.limit(total_s, lambda: TotalTimeError(total_s))
        body = parse_json(await read_body(head, request.receive, state, watch.body))
        rendered = [await state.predictor.render_in_turn(messages) for messages in _conversations(body)]
        try:
            predictions = await state.predictor.score(rendered, state.engine)
        except EngineUnavailableError as error:
            raise ProbeUnavailableError(f"the probe engine cannot answer: {error}") from error
    state.metrics.probe_cost.inc(sum(prediction.prefill_usd for prediction in predictions))
    for prediction in predictions:
        state.metrics.observe_percentile(prediction.percentile)
    data = [
        {"index": i, "arms": _scores(state, prediction), "flags": list(prediction.flags)}
        for i, prediction in enumerate(predictions)
    ]
    return JSONResponse({"data": data}, headers={"x-request-id": head.request_id})


@router.post("/route")
async def route(request: Request) -> Response:
    """Where a chat body would go, and why."""
    state = current(request.scope)
    head = read_head(request.scope["headers"])
    head.key = key_of(request.scope)
    with state.admit() as watch:
        total_s = state.settings.limits.total_s
        watch.limit(total_s, lambda: TotalTimeError(total_s))
        chat = parse_chat(await read_body(head, request.receive, state, watch.body), head)
        decision = await decide(state, chat, dry=True)
    state.metrics.probe_cost.inc(decision.prediction.prefill_usd)
    arms = state.pool.arms
    return JSONResponse(
        {
            "arm": arms[decision.arm].name,
            "policy": decision.policy,
            "path": decision.path,
            "policy_arm": arms[decision.policy_arm].name,
            "propensity": decision.propensity,
            "group": decision.group,
            "conversation": _conversation(decision),
            "flags": list(decision.flags),
            "activation_percentile": decision.prediction.percentile,
            "arms": _considered(state, decision),
            "fallbacks": [arms[i].name for i in decision.fallbacks(state, chat)],
        },
        headers={"x-request-id": head.request_id},
    )


def _conversation(decision: Decision) -> dict[str, Any] | None:
    """What is remembered of the conversation that the body goes on with; null where nothing is."""
    conversation = decision.conversation
    if conversation is None or conversation.kept is None:
        return None
    kept = conversation.kept
    return {
        "arm": kept.arm or None,
        "last_arm": kept.last,
        "replica": kept.replica,
        "tool_result": conversation.tool_result,
    }


def _conversations(body: dict[str, Any]) -> list[Messages]:
    """`input` is a text, texts, or conversations.

    Raises:
        BadRequestError: it is none of these.
    """
    for key in body:
        if key != "input":
            raise BadRequestError(f"{key} is unknown: /score takes only input", key)
    given = body.get("input")
    items = [given] if isinstance(given, str) else given
    if not isinstance(items, list) or not items:
        raise BadRequestError("input must be a text, a list of texts, or a list of conversations", "input")
    if len(items) > MAX_INPUTS:
        raise BadRequestError(f"input has {len(items)} entries; at most {MAX_INPUTS} at once", "input")
    return [
        [{"role": "user", "content": item}] if isinstance(item, str) else check_messages(item, f"input[{i}]")
        for i, item in enumerate(items)
    ]


def _scores(state: State, prediction: Prediction) -> dict[str, Any]:
    """Per arm what its probe says; null for an arm without one."""
    scores: dict[str, Any] = {}
    for i, arm in enumerate(state.pool.arms):
        if arm.artifact is None:
            scores[arm.name] = None
            continue
        scores[arm.name] = {
            **_probability(float(prediction.success[i])),
            "activation_percentile": _known(prediction.activation_percentile[i]),
            "prompt_tokens": prediction.prompt_tokens[i],
            "probe": arm.probe_name,
        }
    return scores


def _considered(state: State, decision: Decision) -> dict[str, Any]:
    return {
        arm.name: {
            **_probability(float(decision.prediction.success[i])),
            "expected_cost_usd": float(decision.cost[i]),
            "expected_output_tokens": _known(decision.prediction.output_tokens[i]),
            "prompt_tokens": decision.prediction.prompt_tokens[i],
            "allowed": bool(decision.allowed[i]),
        }
        for i, arm in enumerate(state.pool.arms)
    }


def _probability(success: float) -> dict[str, float | None]:
    known = _known(success)
    return {"success_probability": known, "difficulty": None if known is None else 1 - known}


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
