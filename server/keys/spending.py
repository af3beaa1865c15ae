"""What a request may cost at the most, so that a budget which holds that holds whatever comes.

Amounts are whole pico-USD (1e-12 USD): sums are exact, and a million tokens at a dollar are 1e12.
"""

from collections.abc import Mapping
from typing import Any

from server.chat_request import ChatRequest
from server.errors import BadRequestError
from server.pool import Arm

PICO = 10**12
MICRO = 10**6
"""Pico-USD in a millionth of a USD, in which a token's price is given."""
TEMPLATE_TOKENS = 256
"""What a chat template adds to a prompt is assumed to stay below this."""
MAX_PICO_USD = 1000 * PICO
"""Of one request, whatever an upstream claims."""
LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""Names of a limit on output tokens, of whichever endpoint; of several the largest counts."""
WRITES_NOTHING = frozenset(
    (
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/score",
        "/v2/embed",
        "/v2/rerank",
        "/rerank",
        "/classify",
        "/pooling",
    )
)
COSTS_NOTHING = frozenset(
    (
        "/v1/messages/count_tokens",
        "/v1/chat/completions/render",
        "/v1/completions/render",
        "/tokenize",
        "/detokenize",
    )
)
"""No model runs for these."""


def pico_usd(arm: Arm, input_tokens: int, output_tokens: int) -> int:
    """What so many tokens cost."""
    prices = arm.model.prices
    return min(round((input_tokens * prices.input + output_tokens * prices.output) * MICRO), MAX_PICO_USD)


def most_pico_usd(arm: Arm, request: ChatRequest) -> int:
    """A bound on one answer's cost: a token for every byte of the body, and all that the arm may write.

    The context's length bounds each prompt with its answer. An image's tokens do not show in its bytes: a prompt with
    one counts as a whole context.

    Raises:
        BadRequestError: a limit or a number of answers is no whole number, so that there is no bound.
    """
    if request.path in COSTS_NOTHING:
        return 0
    context = arm.model.max_context_tokens
    body = arm.fields(request.body) if request.routed else request.body
    prompt = body.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int) else 1
    inputs = request.size + TEMPLATE_TOKENS * prompts
    if _has_more_than_text(request):
        inputs = max(inputs, context)
    if request.routed:
        inputs = min(inputs, context * prompts)
    outputs = 0
    if request.path not in WRITES_NOTHING:
        limits = [limit for name in LIMITS if (limit := _whole(body, name)) is not None]
        answers = max(_whole(body, "n") or 1, _whole(body, "best_of") or 1, 1)
        outputs = prompts * answers * (min(max(limits), context) if limits else context)
    return pico_usd(arm, inputs, outputs)


def _has_more_than_text(request: ChatRequest) -> bool:
    for message in request.messages:
        content = message.get("content")
        if isinstance(content, list) and any(part["type"] != "text" for part in content):
            return True
    return not request.routed


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadRequestError(f"{name} must be a whole number: this key's budget is reckoned with it", name)
    return value
