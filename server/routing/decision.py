"""What a decision is: an arm, why it was chosen, and who would be next."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probes.base import FloatArray
from routing_policies.base import BoolArray, Policy
from routing_policies.costs import expected_cost
from server.chat_request import ChatRequest
from server.pool import Arm
from server.predictor import Prediction
from server.routing.session import Conversation, Group
from server.state import State


@dataclass(slots=True)
class Decision:
    """One arm, why it was chosen, and who would be next. Nobody changes it; to freeze it would cost every request
    microseconds."""

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
    policy_arm: int
    """What the policy itself would have chosen; equal to `arm` where it was not asked."""
    propensity: float = 1.0
    """The probability with which this arm was drawn, given the request; 1 where no chance was involved."""
    odds: FloatArray | None = None
    """The same of every arm, (k,); None: this one for sure."""
    group: Group | None = None
    """Of a trial of two policies; None where the request takes no part."""
    conversation: Conversation | None = None
    """None where conversations are not told apart."""
    next_policy: str | None = None
    """What falls back of a pinned request are policy's choices; this is its name."""

    @property
    def pinned(self) -> bool:
        """Whether the client named an arm, even if another took its place."""
        return self.path == "pinned" or self.next_policy is not None

    @property
    def success_probability(self) -> float | None:
        """None where it is not known."""
        value = self.prediction.success.item(self.arm)
        return None if value != value else value

    @property
    def chances(self) -> FloatArray:
        """The probability with which each arm would be drawn, given the request, (k,)."""
        if self.odds is not None:
            return self.odds
        certain = np.zeros(len(self.cost))
        certain[self.arm] = 1.0
        return certain

    def moved(self, state: State, request: ChatRequest, arm: int, path: str, **changes: Any) -> "Decision":
        """The same decision for another arm that can serve the request.

        Args:
            path: why it is another one.
            changes: further fields, `propensity` say.
        """
        missed = self.chooser is not None and _misses(self.chooser, self.prediction.success, arm)
        flags = flags_of(state.pool.arms[arm], request, self.prediction, missed)
        allowed = self.allowed
        if not allowed[arm]:
            allowed = allowed.copy()
            allowed[arm] = True
        return replace(self, **{"arm": arm, "path": path, "flags": flags, "allowed": allowed, **changes})

    def fallback(self, state: State, request: ChatRequest) -> "Decision | None":
        """The policy's next choice among the arms that satisfy the request."""
        allowed = self.allowed.copy()
        allowed[self.arm] = False
        if self.chooser is None or not allowed.any():
            return None
        arm, infeasible = choose(self.chooser, self.prediction.success, self.cost, allowed)
        flags = flags_of(state.pool.arms[arm], request, self.prediction, infeasible)
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


def choose(policy: Policy, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> tuple[int, bool]:
    """One request's arm, and whether it misses the policy's own target; three times (k,)."""
    chosen = policy.choose(success[None], cost[None], allowed[None])
    infeasible = policy.infeasible(success[None], chosen)
    return int(chosen[0]), bool(infeasible[0])


def _misses(policy: Policy, success: FloatArray, arm: int) -> bool:
    return bool(policy.infeasible(success[None], np.array([arm]))[0])


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


def flags_of(arm: Arm, request: ChatRequest, prediction: Prediction, infeasible: bool) -> tuple[str, ...]:
    """What the client and the operator should know about this arm's answer."""
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
