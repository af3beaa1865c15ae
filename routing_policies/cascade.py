"""Cheapest tier first, one step up while the success probability is at or below the step's threshold.

The decision rests on probabilities read before generation: no arm answers in vain.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from routing_policies.base import (
    BoolArray,
    FloatArray,
    IndexArray,
    Policy,
    PolicyError,
    column,
    number,
    saving,
    tier_costs,
)


@dataclass(frozen=True)
class Cascade(Policy):
    knob: ClassVar[str | None] = "thresholds"

    tier_cost: tuple[float, ...]
    """Mean USD of one answer per arm of the whole pool, (k,); arms of equal cost keep their order."""
    thresholds: float | tuple[float, ...] = 0.5
    """One for all steps, or one per step from each arm to the next dearer one of the whole pool, (k - 1,)."""

    def __post_init__(self) -> None:
        steps = len(self.tier_cost) - 1
        if isinstance(self.thresholds, tuple):
            if len(self.thresholds) != steps:
                raise PolicyError(
                    f"thresholds must be one number, or {steps} for a pool of {steps + 1} arms (one per step, "
                    f"cheapest first), not {len(self.thresholds)}"
                )
            for threshold in self.thresholds:
                number("thresholds", threshold, low=0, high=1)
        else:
            number("thresholds", self.thresholds, low=0, high=1)

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        thresholds = knobs.get("thresholds", cls.thresholds)
        return cls(tier_cost, tuple(thresholds) if isinstance(thresholds, list) else thresholds)

    def _steps(self, k: int) -> tuple[IndexArray, FloatArray]:
        """The arms, cheapest first, and what each one's probability must exceed, (k,) each; the last has no step."""
        order = np.argsort(tier_costs(self.tier_cost, k), kind="stable")
        limits = np.ones(k)
        limits[:-1] = self.thresholds
        return order, limits

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        k = success.shape[1]
        order, limits = self._steps(k)
        may, success = allowed[:, order], success[:, order]
        stops = may & (success > limits)  # (n, k), cheapest first
        fallback = k - 1 - may[:, ::-1].argmax(axis=1)  # the last allowed arm
        chosen: IndexArray = order[np.where(stops.any(axis=1), stops.argmax(axis=1), fallback)]
        return chosen

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """In success probability where one would not stop at `than`, else the share of its tier cost that is saved."""
        order, limits = self._steps(success.shape[1])
        limit = np.empty_like(limits)
        limit[order] = limits  # by arm
        more = column(success, arms) - column(success, than)
        tier = np.broadcast_to(tier_costs(self.tier_cost, success.shape[1]), success.shape)
        return np.where(column(success, than) > limit[than], saving(tier, arms, than), more)
