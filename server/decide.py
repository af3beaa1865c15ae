"""Which arm takes a request, and why.

What goes first: pin, the arms that the request may use, capability, audit, safe arm (out of distribution), policy.
"""

from contextlib import suppress
from dataclasses import replace
from typing import Any

from probes.base import FloatArray
from probes.engine.base import EngineUnavailableError
from routing_policies.base import BoolArray, Policy, PolicyError
from server.audit import audited
from server.capability import affordable, only, servable, surely_fits
from server.chat_request import ChatRequest
from server.decision import Decision, choose, expected_costs, flags_of
from server.errors import BadRequestError, GatewayError, ProbeUnavailableError, UnknownModelError
from server.knobs import parse_knobs
from server.predictor import Prediction
from server.state import State


async def decide(state: State, request: ChatRequest, dry: bool = False) -> Decision:
    """
    Args:
        dry: nobody is to answer; chance takes no part.

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
        if not dry:
            decision = audited(state, request, decision)
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
                policy_arm=pinned,
                next_policy=routed.policy,
            )
    return decision


async def _route(state: State, request: ChatRequest, knobs: dict[str, Any]) -> Decision:
    permitted: list[str] | None = knobs.pop("arms", None)
    max_cost_usd: float | None = knobs.pop("max_cost_usd", state.policies.knobs.get("max_cost_usd"))
    try:
        name, policy = state.policies.get(knobs)
    except PolicyError as error:
        raise BadRequestError(str(error), "routing") from error

    safe_arm = state.settings.out_of_distribution.safe_arm
    scored = policy.needs_success or safe_arm is not None
    rendered = None
    if scored or not surely_fits(state, request):
        rendered = await state.predictor.render(request.messages)
    lengths = state.predictor.unscored(rendered)
    allowed = servable(state, request, lengths, permitted)
    prediction = lengths
    if scored and rendered is not None:
        try:
            [prediction] = await state.predictor.score([rendered], state.engine)
        except EngineUnavailableError as error:
            return _unavailable(state, request, lengths, allowed, name, str(error))
    cost = expected_costs(state, prediction)
    within, over_budget = affordable(cost, allowed, max_cost_usd)
    arm, infeasible = _chosen(state, policy, prediction, cost, within)
    flags = flags_of(state.pool.arms[arm], request, prediction, infeasible or over_budget)
    decision = Decision(arm, name, "routed", flags, prediction, cost, within, policy, policy_arm=arm)
    return _safe(state, request, decision, allowed)


def _safe(state: State, request: ChatRequest, decision: Decision, allowed: BoolArray) -> Decision:
    """What is out of distribution goes to the safe arm, where there is one that can serve it."""
    name = state.settings.out_of_distribution.safe_arm
    if name is None or not state.predictor.out_of_distribution(decision.prediction):
        return decision
    arm = state.pool.index(name)
    if arm is None or not allowed[arm]:
        return decision
    flags = flags_of(state.pool.arms[arm], request, decision.prediction, infeasible=False)
    return replace(decision, arm=arm, path="safe-arm", flags=flags, allowed=allowed)


def _pin(state: State, request: ChatRequest, arm: int) -> Decision:
    prediction = state.predictor.unscored(None)
    flags = flags_of(state.pool.arms[arm], request, prediction, infeasible=False)
    cost = expected_costs(state, prediction)
    return Decision(arm, "none", "pinned", flags, prediction, cost, only(state, arm), None, policy_arm=arm)


def _unavailable(
    state: State, request: ChatRequest, prediction: Prediction, allowed: BoolArray, policy: str, reason: str
) -> Decision:
    """Probabilities are missing: the configured arm where it can serve the request, else 503."""
    name = state.settings.engine.when_unavailable
    arm = None if name == 503 else state.pool.index(str(name))
    if arm is None or not allowed[arm]:
        raise ProbeUnavailableError(f"the probe engine cannot answer: {reason}")
    flags = flags_of(state.pool.arms[arm], request, prediction, infeasible=False)
    cost = expected_costs(state, prediction)
    return Decision(arm, policy, "probe-unavailable", flags, prediction, cost, only(state, arm), None, policy_arm=arm)


def _chosen(
    state: State, policy: Policy, prediction: Prediction, cost: FloatArray, allowed: BoolArray
) -> tuple[int, bool]:
    """The policy's arm, and whether it misses the policy's target; looked up where it is the same for every request."""
    if not (policy.reads_costs_alone and cost is state.pool.mean_costs and allowed is state.pool.every_arm):
        return choose(policy, prediction.success, cost, allowed)
    arm = state.constant_choices.get(policy)
    if arm is None:
        arm, _ = choose(policy, prediction.success, cost, allowed)
        state.constant_choices[policy] = arm
    return arm, False
