"""The arm with the least expected cost whose success probability meets a target, else the most probable one."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, best, number


@dataclass(frozen=True)
class MinSuccess(Policy):
    knob: ClassVar[str | None] = "min_success"

    min_success: float = 0.8
    """Success probability that every single answer shall have."""

    def __post_init__(self) -> None:
        number("min_success", self.min_success, low=0, high=1)

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        return cls(knobs.get("min_success", cls.min_success))

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        meets = allowed & (success >= self.min_success)
        chosen: IndexArray = np.where(meets.any(axis=1), best(-cost, meets), best(success, allowed))
        return chosen

    def infeasible(self, success: FloatArray, arms: IndexArray) -> BoolArray:
        """Where even the most probable arm is below the target, (n,)."""
        missed: BoolArray = success[np.arange(len(arms)), arms] < self.min_success
        return missed
