"""Which arm takes a request, and why.

What goes first: pin, the arms that the request may use, capability, tools' results (to the arm that asked for them),
audit, canary, safe arm (out of distribution), sticky (a conversation stays), policy. Shadow mode decides all of it, and
then sends to its own arm.
"""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from probes.engine.base import EngineUnavailableError
from routing_policies.base import PolicyError
from server.chat_request import ChatRequest
from server.errors import BadRequestError, GatewayError, ProbeUnavailableError, UnknownModelError
from server.routing.audit import audited
from server.routing.capability import only, servable, surely_fits
from server.routing.decision import Decision, expected_costs, flags_of
from server.routing.knobs import parse_knobs
from server.routing.policies import Course, Policies
from server.routing.precedence import Case, by_policy, canary, safe, shadow, sticky, tool_result
from server.routing.session import Conversation, conversation_of
from server.sections.routing import Session
from server.state import State

SESSION = Session()
"""What holds of conversations where the configuration says nothing of them."""


async def decide(state: State, request: ChatRequest, dry: bool = False) -> Decision:
    """
    Args:
        dry: nobody is to answer; chance takes no part.

    Raises:
        UnknownModelError: the model is neither an arm nor `auto...`.
        BadRequestError: a knob is wrong, or no arm can serve what the request needs.
        NotAllowedError: the client's key may not use what it asks for.
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
    knobs = parse_knobs(request.body, request.head.knobs, alias, state.allow_request, names)
    key = request.head.key
    if key is not None:
        knobs = key.permit(knobs, None if pinned is None else request.model, state.policies.name)
    # Without messages there is nothing that a policy could go by.
    may_fall_back: bool = knobs.pop("fallback", pinned is None) and bool(request.messages)
    if pinned is None:
        decision = await _route(state, request, knobs, dry)
        return decision if may_fall_back else replace(decision, chooser=None)
    conversation = None
    if state.session is not None and state.sessions is not None and request.messages:
        conversation = await _conversation(state, request, pinned=True)
    decision = _pin(state, request, pinned, conversation)
    if may_fall_back:
        # Where nothing else could take the request, there is nothing to fall back to.
        with suppress(GatewayError):
            routed = await _route(state, request, knobs, dry=True)
            decision = replace(
                decision,
                prediction=routed.prediction,
                cost=routed.cost,
                allowed=routed.allowed | decision.allowed,
                chooser=routed.chooser,
                next_policy=routed.policy,
            )
    return decision


async def _route(state: State, request: ChatRequest, knobs: dict[str, Any], dry: bool) -> Decision:
    permitted: list[str] | None = knobs.pop("arms", None)
    max_cost_usd: float | None = knobs.pop("max_cost_usd", None)
    course = _course(state.policies, knobs, max_cost_usd)
    conversation = None if state.sessions is None else await _conversation(state, request)
    # Who asks for a policy gets it: a trial divides those who leave that to the configuration.
    trial = None if knobs or conversation is None else state.canary
    candidate = None if trial is None else _course(trial.policies, {}, max_cost_usd)

    scored = course.policy.needs_success or state.safe_arm is not None
    if candidate is not None:
        scored = scored or candidate.policy.needs_success  # for both groups, which are compared
    rendered = None
    if scored or not surely_fits(state, request):
        rendered = await state.predictor.render(request.messages)
    prediction = state.predictor.unscored(rendered)
    allowed = servable(state, request, prediction, permitted)
    if scored and rendered is not None:
        try:
            [prediction] = await state.predictor.score([rendered], state.engine)
        except EngineUnavailableError as error:
            case = Case(state, request, prediction, expected_costs(state, prediction), allowed, conversation)
            return _unavailable(case, course.name, str(error))
    case = Case(state, request, prediction, expected_costs(state, prediction), allowed, conversation)

    decision = safe(case, sticky(case, by_policy(case, course)))
    if trial is not None and candidate is not None and conversation is not None:
        tried = sticky(case, by_policy(case, candidate, "canary"), "canary")
        group = trial.group_of(conversation, request.head.request_id)
        decision = canary(trial, group, decision, tried)
    if not dry:
        decision = audited(state, request, decision)
    return shadow(case, tool_result(case, decision))


def _course(policies: Policies, knobs: Mapping[str, Any], max_cost_usd: float | None) -> Course:
    try:
        course = policies.get(knobs)
    except PolicyError as error:
        raise BadRequestError(str(error), "routing") from error
    return course if max_cost_usd is None else replace(course, max_cost_usd=max_cost_usd)


async def _conversation(state: State, request: ChatRequest, pinned: bool = False) -> Conversation:
    assert state.sessions is not None
    key = request.head.key
    conversation = conversation_of(request, None if key is None else key.name)
    if pinned:  # where it goes is said: no turn that another worker may have answered is waited for
        conversation = replace(conversation, tool_result=False)
    minutes = (state.session or SESSION).minutes
    kept = state.sessions.find(conversation, minutes)
    if state.session_ledger is not None:
        kept = await state.session_ledger.later(conversation, kept, minutes)
    return conversation if kept is None else replace(conversation, kept=kept)


def _pin(state: State, request: ChatRequest, arm: int, conversation: Conversation | None) -> Decision:
    prediction = state.predictor.unscored(None)
    flags = flags_of(state.pool.arms[arm], request, prediction, infeasible=False)
    cost = expected_costs(state, prediction)
    return Decision(
        arm, "none", "pinned", flags, prediction, cost, only(state, arm), None,
        policy_arm=arm, conversation=conversation,
    )  # fmt: skip


def _unavailable(case: Case, policy: str, reason: str) -> Decision:
    """Probabilities are missing: a conversation stays where it is, shadow mode needs none; else the configured arm
    where it can serve the request, else 503."""
    state = case.state
    shadowing, path = state.shadow, "probe-unavailable"
    name = state.settings.engine.when_unavailable if shadowing is None else shadowing.arm
    arm = None if name == 503 else state.pool.index(str(name))
    if shadowing is None and (stays := case.stays_at()) is not None:
        arm, path = stays, "sticky"
    if arm is None or not case.servable[arm]:
        raise ProbeUnavailableError(f"the probe engine cannot answer: {reason}")
    flags = flags_of(state.pool.arms[arm], case.request, case.prediction, infeasible=False)
    return Decision(
        arm, policy, path, flags, case.prediction, case.cost, only(state, arm), None,
        policy_arm=arm, conversation=case.conversation,
    )  # fmt: skip
