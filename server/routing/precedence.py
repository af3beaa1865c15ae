"""What may have another arm take a request than the policy's own choice. Each step gets a decision, and returns it or
another; what goes first is applied last.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probes.base import FloatArray
from routing_policies.base import BoolArray, Policy
from server.chat_request import ChatRequest
from server.predictor import Prediction
from server.routing.capability import affordable
from server.routing.decision import Decision, choose, flags_of
from server.routing.experiment import Canary
from server.routing.policies import Course
from server.routing.session import Conversation, Group
from server.state import State

CERTAIN: dict[str, Any] = {"propensity": 1.0, "odds": None}
"""What a decision says of its chances, where chance had no part in it."""


@dataclass(slots=True)
class Case:
    """All that is known of a request when its arm is chosen."""

    state: State
    request: ChatRequest
    prediction: Prediction
    cost: FloatArray
    """Expected USD of one answer per arm, (k,)."""
    servable: BoolArray
    """Arms that the request may go to, (k,)."""
    conversation: Conversation | None
    """None where conversations are not told apart."""

    def stays_at(self) -> int | None:
        """The arm that the conversation is on, where it can take this request too. After an audit, tools' results go
        to the arm that asked for them, and everything else back to where the conversation was."""
        if self.state.session is None or self.conversation is None or self.conversation.kept is None:
            return None
        kept = self.conversation.kept
        arm = self.state.pool.index(kept.last if self.conversation.tool_result else kept.arm)
        return None if arm is None or not self.servable[arm] else arm


def by_policy(case: Case, course: Course, path: str = "routed") -> Decision:
    """The policy's own choice among the arms within its bound."""
    within, over_budget = affordable(case.cost, case.servable, course.max_cost_usd)
    arm, infeasible = _chosen(case, course.policy, within)
    flags = flags_of(case.state.pool.arms[arm], case.request, case.prediction, infeasible or over_budget)
    decision = Decision(
        arm,
        course.name,
        path,
        flags,
        case.prediction,
        case.cost,
        within,
        course.policy,
        policy_arm=arm,
        conversation=case.conversation,
    )
    return replace(decision, **_drawn(within / within.sum(), arm)) if course.policy.draws else decision


def _drawn(odds: FloatArray, arm: int) -> dict[str, Any]:
    """What a decision says of its chances, where chance took the arm."""
    return {"odds": odds, "propensity": float(odds[arm])}


def _chosen(case: Case, policy: Policy, allowed: BoolArray) -> tuple[int, bool]:
    """The policy's arm, and whether it misses the policy's target; looked up where it is the same for every request."""
    state = case.state
    if not (policy.reads_costs_alone and case.cost is state.pool.mean_costs and allowed is state.pool.every_arm):
        return choose(policy, case.prediction.success, case.cost, allowed)
    arm = state.constant_choices.get(policy)
    if arm is None:
        arm, _ = choose(policy, case.prediction.success, case.cost, allowed)
        state.constant_choices[policy] = arm
    return arm, False


def sticky(case: Case, decision: Decision, path: str = "sticky") -> Decision:
    """A conversation stays on its arm, unless the policy gains more than `session.margin` by the one it chose."""
    stays = case.stays_at()
    if stays is None or not decision.allowed[stays]:
        return decision
    if stays == decision.arm:
        return replace(decision, path=path, **CERTAIN)
    assert case.state.session is not None
    assert decision.chooser is not None
    arms = np.array([decision.arm, stays])
    [gain] = decision.chooser.gain(case.prediction.success[None], case.cost[None], arms[:1], arms[1:])
    if gain > case.state.session.margin:
        return decision
    return decision.moved(case.state, case.request, stays, path, **CERTAIN)


def safe(case: Case, decision: Decision) -> Decision:
    """What is out of distribution goes to the safe arm, where there is one that can serve it."""
    state = case.state
    name = state.safe_arm
    if name is None or not state.predictor.out_of_distribution(case.prediction):
        return decision
    arm = state.pool.index(name)
    if arm is None or not case.servable[arm]:
        return decision
    flags = flags_of(state.pool.arms[arm], case.request, case.prediction, infeasible=False)
    return replace(decision, arm=arm, path="safe-arm", flags=flags, allowed=case.servable, **CERTAIN)


def canary(trial: Canary, group: Group, decision: Decision, tried: Decision) -> Decision:
    """By the candidate or not, as the group says; both tell how likely each arm was.

    The odds are those of the draw that put the conversation into its group, as if it were made for this request.

    Args:
        decision: without the trial.
        tried: by the candidate.
    """
    odds = trial.share * tried.chances + (1 - trial.share) * decision.chances
    drawn = tried if group == "canary" else decision
    return replace(drawn, group=group, **_drawn(odds, drawn.arm))


def tool_result(case: Case, decision: Decision) -> Decision:
    """What an answer's tools found goes to the arm that asked for it."""
    if case.conversation is None or not case.conversation.tool_result:
        return decision
    stays = case.stays_at()
    if stays is None:
        return decision
    return decision.moved(case.state, case.request, stays, "sticky", **CERTAIN)


def shadow(case: Case, decision: Decision) -> Decision:
    """All goes to the shadow mode's arm where it can; `policy_arm` is where it would have gone."""
    section = case.state.shadow
    arm = None if section is None else case.state.pool.index(section.arm)
    if arm is None or not case.servable[arm]:
        return decision
    return decision.moved(case.state, case.request, arm, "shadow", policy_arm=decision.arm, **CERTAIN)
