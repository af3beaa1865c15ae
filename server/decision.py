"""Which arm takes a request, and why."""

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from probes.base import FloatArray
from probes.engine.base import EngineUnavailableError
from routing_policies.base import BoolArray, Policy, PolicyError
from routing_policies.costs import expected_cost
from server.chat_request import ChatRequest
from server.errors import BadRequestError, ContextLengthError, GatewayError, ProbeUnavailableError, UnknownModelError
from server.knobs import parse_knobs
from server.pool import Arm
from server.predictor import Prediction
from server.state import State

CHAT_OVERHEAD_TOKENS = 64
"""A template's own tokens are assumed to stay below this where a prompt is not rendered."""


@dataclass(frozen=True)
class Decision:
    """One arm, why it was chosen, and who would be next."""

    arm: int
    policy: str
    path: str
    flags: tuple[str, ...]
    prediction: Prediction
    cost: FloatArray
    """Expected USD of one answer per arm, (k,)."""
    allowed: BoolArray
    """Arms that could still take the request, (k,); the chosen one included."""
    chooser: Policy | None
    """None where no policy chose, so that nothing else may take the request either."""
    next_policy: str | None = None
    """What falls back of a pinned request are policy's choices; this is its name."""

    @cached_property
    def success_probability(self) -> float | None:
        value = float(self.prediction.success[self.arm])
        return None if np.isnan(value) else value

    def fallback(self, state: State, request: ChatRequest) -> "Decision | None":
        """The policy's next choice among the arms that satisfy the request."""
        allowed = self.allowed.copy()
        allowed[self.arm] = False
        if self.chooser is None or not allowed.any():
            return None
        arm, infeasible = _choose(self.chooser, self.prediction.success, self.cost, allowed)
        flags = _flags(state.pool.arms[arm], request, self.prediction, infeasible)
        policy = self.next_policy or self.policy
        return replace(self, arm=arm, policy=policy, path="fallback", flags=flags, allowed=allowed)

    def fallbacks(self, state: State, request: ChatRequest) -> list[int]:
        """All next choices in order."""
        order: list[int] = []
        following = self.fallback(state, request)
        while following is not None:
            order.append(following.arm)
            following = following.fallback(state, request)
        return order


async def decide(state: State, request: ChatRequest) -> Decision:
    """Pin, else the safe arm for what is out of distribution, else policy, among arms that can serve the request.

    Raises:
        UnknownModelError: the model is neither an arm nor `auto...`.
        BadRequestError: a knob is wrong, or no arm can serve what the request needs.
        ProbeUnavailableError: the engine cannot answer and the configuration names no arm for that case.
    """
    names = state.pool.names
    pinned = state.pool.index(request.model)
    if pinned is None and not request.routed:
        raise UnknownModelError(
            f"{request.path} is not routed: model must be an arm, one of {', '.join(names)}", "model"
        )
    if pinned is None and request.model != "auto" and not request.model.startswith("auto-"):
        raise UnknownModelError(
            f"model {request.model[:100]!r} does not exist: use 'auto', or an arm: {', '.join(names)}", "model"
        )
    alias = "auto" if pinned is not None else request.model
    knobs = parse_knobs(request.body, request.head.knobs, alias, state.settings.allow_request, names)
    # Without messages there is nothing that a policy could go by.
    may_fall_back: bool = knobs.pop("fallback", pinned is None) and bool(request.messages)
    if pinned is None:
        decision = await _route(state, request, knobs)
        return decision if may_fall_back else replace(decision, chooser=None)
    decision = _pin(state, request, pinned)
    if may_fall_back:
        # Where nothing else could take the request, there is nothing to fall back to.
        with suppress(GatewayError):
            routed = await _route(state, request, knobs)
            decision = replace(
                routed,
                arm=pinned,
                policy="none",
                path="pinned",
                flags=decision.flags,
                allowed=routed.allowed | decision.allowed,
                next_policy=routed.policy,
            )
    return decision


async def _route(state: State, request: ChatRequest, knobs: dict[str, Any]) -> Decision:
    arms: list[str] | None = knobs.pop("arms", None)
    max_cost_usd: float | None = knobs.pop("max_cost_usd", state.policies.knobs.get("max_cost_usd"))
    try:
        name, policy = state.policies.get(knobs)
    except PolicyError as error:
        raise BadRequestError(str(error), "routing") from error

    safe_arm = state.settings.out_of_distribution.safe_arm
    scored = policy.needs_success or safe_arm is not None
    rendered = None
    if scored or not _surely_fits(state, request):
        rendered = await state.predictor.render(request.messages)
    lengths = state.predictor.unscored(rendered)
    allowed = _servable(state, request, lengths, arms)
    prediction = lengths
    if scored and rendered is not None:
        try:
            [prediction] = await state.predictor.score([rendered], state.engine)
        except EngineUnavailableError as error:
            return _unavailable(state, request, lengths, allowed, name, str(error))
    cost = expected_costs(state, prediction)
    if safe_arm is not None and state.predictor.out_of_distribution(prediction):
        safe = state.pool.index(safe_arm)
        if safe is not None and allowed[safe]:
            flags = _flags(state.pool.arms[safe], request, prediction, infeasible=False)
            return Decision(safe, name, "safe-arm", flags, prediction, cost, allowed, policy)
    affordable, over_budget = _affordable(cost, allowed, max_cost_usd)
    arm, infeasible = _chosen(state, policy, prediction, cost, affordable)
    flags = _flags(state.pool.arms[arm], request, prediction, infeasible or over_budget)
    return Decision(arm, name, "routed", flags, prediction, cost, affordable, policy)


def _pin(state: State, request: ChatRequest, arm: int) -> Decision:
    prediction = state.predictor.unscored(None)
    flags = _flags(state.pool.arms[arm], request, prediction, infeasible=False)
    cost = expected_costs(state, prediction)
    return Decision(arm, "none", "pinned", flags, prediction, cost, _only(state, arm), None)


def _only(state: State, arm: int) -> BoolArray:
    only = np.zeros(len(state.pool.arms), dtype=np.bool_)
    only[arm] = True
    return only


def _unavailable(
    state: State, request: ChatRequest, prediction: Prediction, allowed: BoolArray, policy: str, reason: str
) -> Decision:
    """Probabilities are missing: the configured arm where it can serve the request, else 503."""
    name = state.settings.engine.when_unavailable
    arm = None if name == 503 else state.pool.index(str(name))
    if arm is None or not allowed[arm]:
        raise ProbeUnavailableError(f"the probe engine cannot answer: {reason}")
    flags = _flags(state.pool.arms[arm], request, prediction, infeasible=False)
    cost = expected_costs(state, prediction)
    return Decision(arm, policy, "probe-unavailable", flags, prediction, cost, _only(state, arm), None)


def _chosen(
    state: State, policy: Policy, prediction: Prediction, cost: FloatArray, allowed: BoolArray
) -> tuple[int, bool]:
    if not (policy.reads_costs_alone and cost is state.pool.mean_costs and allowed is state.pool.every_arm):
        return _choose(policy, prediction.success, cost, allowed)
    arm = state.constant_choices.get(policy)
    if arm is None:
        arm, _ = _choose(policy, prediction.success, cost, allowed)
        state.constant_choices[policy] = arm
    return arm, False


def _choose(policy: Policy, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> tuple[int, bool]:
    chosen = policy.choose(success[None], cost[None], allowed[None])
    infeasible = policy.infeasible(success[None], chosen)
    return int(chosen[0]), bool(infeasible[0])


def expected_costs(state: State, prediction: Prediction) -> FloatArray:
    """Expected USD of one answer per arm, (k,): input and output tokens as far as known, else their means."""
    arms = state.pool.arms
    if prediction is state.predictor.unknown:
        return state.pool.mean_costs
    means = np.array([arm.mean_output_tokens for arm in arms])
    known = zip(arms, prediction.prompt_tokens, strict=True)
    tokens = np.array([[arm.mean_input_tokens if count is None else count for arm, count in known]], dtype=np.float64)
    cost = expected_cost(
        tokens,
        np.where(np.isnan(prediction.output_tokens), means, prediction.output_tokens),
        [arm.model.prices.input for arm in arms],
        [arm.model.prices.output for arm in arms],
    )
    row: FloatArray = cost[0]
    return row


def _surely_fits(state: State, request: ChatRequest) -> bool:
    """Whether every arm's context holds the request without counting tokens: a token has at least one byte."""
    size = request.size + CHAT_OVERHEAD_TOKENS
    return all(size + (arm.max_tokens(request.body) or 0) <= arm.model.max_context_tokens for arm in state.pool.arms)


def _servable(state: State, request: ChatRequest, prediction: Prediction, arms: list[str] | None) -> BoolArray:
    """Arms that the request may go to: asked for, able to serve what it needs, with room for prompt and answer."""
    pool = state.pool.arms
    needed = request.needs
    if arms is None and not needed and prediction is state.predictor.unknown:
        return state.pool.every_arm
    able = [arm for arm in pool if (arms is None or arm.name in arms) and needed <= arm.model.supports]
    if not able:
        needs = " and ".join(sorted(needed))
        raise BadRequestError(f"no arm that may be chosen supports {needs}: add `supports` to its model, or pin an arm")
    counts = dict(zip(state.pool.names, prediction.prompt_tokens, strict=True))
    fitting = [arm for arm in able if _fits(arm, request, counts[arm.name])]
    if not fitting:
        longest = max(able, key=lambda arm: arm.model.max_context_tokens)
        count = counts[longest.name]
        raise ContextLengthError(
            f"the prompt has {count} tokens, with max_tokens {longest.max_tokens(request.body) or 0} more than any "
            f"arm's context holds ({longest.name}: {longest.model.max_context_tokens}); shorten it or lower max_tokens",
            "messages",
        )
    return np.array([arm in fitting for arm in pool], dtype=np.bool_)


def _fits(arm: Arm, request: ChatRequest, prompt_tokens: int | None) -> bool:
    if prompt_tokens is None:
        return True
    return prompt_tokens + (arm.max_tokens(request.body) or 1) <= arm.model.max_context_tokens


def _affordable(cost: FloatArray, allowed: BoolArray, max_cost_usd: float | None) -> tuple[BoolArray, bool]:
    """Arms within the bound, and whether there are none, in which case the cheapest stands alone."""
    if max_cost_usd is None:
        return allowed, False
    within = allowed & (cost <= max_cost_usd)
    if within.any():
        return within, False
    cheapest = np.zeros_like(allowed)
    cheapest[int(np.where(allowed, cost, np.inf).argmin())] = True
    return cheapest, True


def _flags(arm: Arm, request: ChatRequest, prediction: Prediction, infeasible: bool) -> tuple[str, ...]:
    flags = list(prediction.flags)
    if infeasible:
        flags.append("infeasible")
    if request.body.get("tools"):
        flags.append("tools-unseen")
    if arm.sampling_changed(request.body):
        flags.append("policy-changed")
    if arm.uncalibrated:
        flags.append("uncalibrated")
    return tuple(flags)
