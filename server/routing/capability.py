"""Which arms can take a request: permitted, able to serve what it needs, with room for it, and affordable."""

from collections.abc import Collection

import numpy as np

from probes.base import FloatArray
from probes.prompt import text_of
from routing_policies.base import BoolArray
from server.chat_request import ChatRequest
from server.errors import BadRequestError, ContextLengthError
from server.pool import Arm
from server.predictor import Prediction
from server.state import State

CHAT_OVERHEAD_TOKENS = 64
"""A template's own tokens are assumed to stay below this where a prompt is not rendered."""
CHARACTERS_PER_TOKEN = 6
"""More than in most texts, so that few are kept from an arm that could take them."""


def surely_fits(state: State, request: ChatRequest) -> bool:
    """Whether every arm's context holds the request without counting tokens: a token has at least one byte."""
    pool, size = state.pool, request.size + CHAT_OVERHEAD_TOKENS
    if pool.plain:  # all arms get the same body
        return size + (pool.arms[0].max_tokens(request.body) or 0) <= pool.least_context_tokens
    return all(size + (arm.max_tokens(request.body) or 0) <= arm.model.max_context_tokens for arm in pool.arms)


def servable(
    state: State, request: ChatRequest, prediction: Prediction, permitted: Collection[str] | None
) -> BoolArray:
    """Arms that the request may go to, (k,).

    Args:
        permitted: names of the arms that may be asked at all; None permits every one.

    Raises:
        BadRequestError: no such arm supports what the request needs.
        ContextLengthError: none holds its prompt and answer.
    """
    pool = state.pool.arms
    needed = request.needs
    if permitted is None and not needed and prediction is state.predictor.unknown:
        return state.pool.every_arm
    able = [arm for arm in pool if (permitted is None or arm.name in permitted) and needed <= arm.model.supports]
    if not able:
        needs = " and ".join(sorted(needed))
        raise BadRequestError(f"no arm that may be chosen supports {needs}: add `supports` to its model, or pin an arm")
    counts = dict(zip(state.pool.names, prediction.prompt_tokens, strict=True))
    estimate = None if surely_fits(state, request) else _estimated_tokens(request)
    fitting = [arm for arm in able if _fits(arm, request, counts[arm.name] or estimate)]
    if not fitting:
        longest = max(able, key=lambda arm: (counts[arm.name] is None, arm.model.max_context_tokens))
        fitting = [longest] if counts[longest.name] is None else []  # an estimate refuses nobody: its server will
    if not fitting:
        count = counts[longest.name]
        raise ContextLengthError(
            f"the prompt has {count} tokens, with max_tokens {longest.max_tokens(request.body) or 0} more than any "
            f"arm's context holds ({longest.name}: {longest.model.max_context_tokens}); shorten it or lower max_tokens",
            "messages",
        )
    return np.array([arm in fitting for arm in pool], dtype=np.bool_)


def _estimated_tokens(request: ChatRequest) -> int:
    """Of a prompt, where an arm has no tokenizer to count: few have fewer."""
    return sum(len(text_of(message.get("content"))) for message in request.messages) // CHARACTERS_PER_TOKEN


def _fits(arm: Arm, request: ChatRequest, prompt_tokens: int | None) -> bool:
    if prompt_tokens is None:
        return True
    return prompt_tokens + (arm.max_tokens(request.body) or 1) <= arm.model.max_context_tokens


def only(state: State, arm: int) -> BoolArray:
    """This arm alone, (k,)."""
    alone = np.zeros(len(state.pool.arms), dtype=np.bool_)
    alone[arm] = True
    return alone


def affordable(cost: FloatArray, allowed: BoolArray, max_cost_usd: float | None) -> tuple[BoolArray, bool]:
    """Arms within the bound, and whether there are none, in which case the cheapest stands alone."""
    if max_cost_usd is None:
        return allowed, False
    within = allowed & (cost <= max_cost_usd)
    if within.any():
        return within, False
    cheapest = np.zeros_like(allowed)
    cheapest[int(np.where(allowed, cost, np.inf).argmin())] = True
    return cheapest, True
