"""Why an arm took a request, in a sentence or two."""

from collections.abc import Sequence

FLAGS = {
    "infeasible": "No arm met the policy's target or cost bound, so the nearest one was taken.",
    "out-of-distribution": "The prompt is unlike the probes' training prompts: the probabilities are less sure.",
    "truncated": "The prompt was cut to the probe's length before it was scored.",
    "text-only": "The request holds more than text, and only its text was scored.",
    "tools-unseen": "The request has tools, which the probes did not see in training.",
    "policy-changed": "The client set the sampling otherwise than it was in the probe's training.",
    "uncalibrated": "The arm's probability is a constant, or not calibrated to single answers.",
}


def why(path: str, policy: str, arm: str, policy_arm: str, propensity: float, flags: Sequence[str]) -> str:
    """
    Args:
        policy_arm: what the policy itself would have chosen.
        propensity: probability with which the arm was drawn.
    """
    own = "" if policy_arm == arm else f" The policy itself would have chosen {policy_arm}."
    by = f"{policy} chose {arm} among the arms that could serve the request"
    sentences = {
        "routed": f"{by}.",
        "pinned": f"The request named {arm}.",
        "sticky": f"The conversation was with {arm} already, and another arm would have gained too little.{own}",
        "safe-arm": f"The prompt is unlike the probes' training prompts: {arm} is the arm configured for such.{own}",
        "audit": f"Drawn at random for the audit, with probability {propensity:.3g}, to learn what arms not chosen "
        f"would have answered.{own}",
        "canary": f"{by}: it is the candidate policy, tried on a share of the requests.{own}",
        "shadow": f"Shadow mode sends every request to {arm}.{own}",
        "fallback": f"{arm} was the next choice after a server of another arm had failed.{own}",
        "probe-unavailable": f"The prompt could not be scored in time: {arm} is the arm configured for that case.",
    }
    said = sentences.get(path, f"{by}, by way of {path}.{own}")
    return " ".join([said, *(FLAGS[flag] for flag in flags if flag in FLAGS)])
