"""A random share of the routed requests goes to a random arm, so that one knows how the arms do that are not chosen.

Where routing chooses by what it thinks of a prompt, an arm's outcomes speak only for the prompts that it got. With a
share s of requests drawn evenly among the m arms that can serve them, every arm gets every kind of prompt, each with a
known probability, its propensity:

    s / m + (1 - s)     the arm that the request would have gone to anyway
    s / m               every other arm that can serve it

Outcomes weighed by 1 / propensity then speak for all prompts alike (Horvitz & Thompson, 1952); see
`routing_policies/off_policy.py`. The probability with which an arm was drawn is what counts, not whether this request
was among the share: an audited request whose draw falls on the arm that was chosen anyway has that arm's propensity.
"""

from dataclasses import replace

import numpy as np

from server.chat_request import ChatRequest
from server.routing.decision import Decision
from server.routing.session import TOOL_ROLES
from server.state import State


def audited(state: State, request: ChatRequest, decision: Decision) -> Decision:
    """The decision, or for an audited request the same one for an arm that chance draws, path `audit`; with its
    propensity either way.

    Nothing is audited where one arm alone can serve the request, or where a tool's result goes back to its caller.
    """
    audit = state.audit
    if audit is None or (request.messages and request.messages[-1].get("role") in TOOL_ROLES):
        return decision
    able = np.flatnonzero(decision.allowed).tolist()
    if len(able) < 2:
        return decision
    if state.chance.random() >= audit.share:
        return replace(decision, propensity=propensity(audit.share, len(able), decision.propensity))
    arm = state.chance.choice(able)
    chance = propensity(audit.share, len(able), float(decision.chances[arm]))
    return decision.moved(state, request, arm, "audit", propensity=chance)


def propensity(share: float, able: int, otherwise: float) -> float:
    """The probability with which an arm is drawn.

    Args:
        share: of requests that are audited.
        able: how many arms can serve the request.
        otherwise: the probability with which it would be drawn if nothing were audited.
    """
    return share / able + (1 - share) * otherwise
