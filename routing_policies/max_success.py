"""The arm most likely to be right, whatever it costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, best


@dataclass(frozen=True)
class MaxSuccess(Policy):
    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        return cls()

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        return best(success, allowed)
