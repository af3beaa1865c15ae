"""The research code's oracle: the cheapest arm that is right, else the cheapest. It peeks at outcomes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, best


@dataclass(frozen=True)
class Oracle(Policy):
    """`success` is whether each arm was correct, 0 or 1, (n, k)."""

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        return cls()

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        right = allowed & (success > 0.5)
        chosen: IndexArray = best(-cost, np.where(right.any(axis=1, keepdims=True), right, allowed))
        return chosen
