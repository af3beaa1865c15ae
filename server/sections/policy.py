"""The sections of a configuration file that say how an arm is chosen. pydantic alone."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from server.sections.base import Section

RoutingField = Literal[
    "policy", "variant", "lambda", "value", "thresholds", "min_success", "accuracy", "max_cost_usd", "arms", "fallback"
]
ROUTING_FIELDS: tuple[RoutingField, ...] = (
    "policy", "variant", "lambda", "value", "thresholds", "min_success", "accuracy", "max_cost_usd", "arms",
    "fallback",
)  # fmt: skip


class Policy(Section):
    """A policy and its knob, or the file that `pika tune` wrote."""

    name: str | None = None
    """utility, cascade, min_success, target_accuracy, max_success, min_cost or random."""
    tuned: str | None = None
    """Path of policy.tuned.json. Knobs that stand beside it win over the file's."""
    variant: str | None = None
    """Of `utility`: lambda (default), original, normalized, ratio, success_per_dollar, threshold or sigmoid."""
    lam: float | None = Field(default=None, alias="lambda", ge=0, allow_inf_nan=False)
    """Of `utility`: the weight of cost; 0 ignores it."""
    value: float | None = Field(default=None, allow_inf_nan=False)
    """Of `utility` in some variants: what a right answer is worth."""
    thresholds: float | list[float] | None = None
    """Of `cascade`: one for all steps, or one for each; a step up while the probability is not above it."""
    min_success: float | None = Field(default=None, ge=0, le=1)
    """Of `min_success`: the probability that every answer must have."""
    accuracy: float | None = Field(default=None, ge=0, le=1)
    """Of `target_accuracy`: the mean that is kept to; needs `tuned`."""
    max_cost_usd: float | None = Field(default=None, ge=0)
    """No arm whose answer is expected to cost more; where all are, the cheapest, flag `infeasible`."""

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is None and self.tuned is None:
            raise ValueError("policy needs a name (such as utility) or tuned (the file that `pika tune` wrote)")
        return self

    def knobs(self) -> dict[str, Any]:
        """The knobs that are set, by the words of the API's `routing` object."""
        knobs = self.model_dump(by_alias=True, exclude_none=True)
        return {key: value for key, value in knobs.items() if key not in ("name", "tuned")}


class SafeArm(Section):
    arm: str
    """Where it can serve them."""


class OutOfDistribution(Section):
    """What to do with prompts unlike those that the probes were trained on, whose probabilities mean little."""

    percentile: float = Field(default=99, gt=0, le=100)
    """A prompt is one where its activation lies further off than that of this share, in percent, of known prompts."""
    action: Literal["none", "flag"] | SafeArm = "flag"
    """`flag`: answers carry the flag `out-of-distribution`. `{arm: NAME}`: they do, and this arm takes such prompts."""

    @property
    def safe_arm(self) -> str | None:
        return self.action.arm if isinstance(self.action, SafeArm) else None
