"""The arm with the least expected cost, whatever it knows."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, best, saving


@dataclass(frozen=True)
class MinCost(Policy):
    needs_success: ClassVar[bool] = False
    reads_costs_alone: ClassVar[bool] = True

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        return cls()

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        return best(-cost, allowed)

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """The share of the cost that is saved."""
        return saving(cost, arms, than)
