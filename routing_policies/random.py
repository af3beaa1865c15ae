"""Any allowed arm, each as likely as the others: what a router must beat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, PolicyError


@dataclass(frozen=True)
class Random(Policy):
    """Draws go on from call to call, so that n single requests choose as one batch of n does."""

    needs_success: ClassVar[bool] = False
    draws: ClassVar[bool] = True

    seed: int | None = None
    """None takes entropy from the system: a policy built anew for each request still varies."""
    _generator: np.random.Generator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        seed = self.seed
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or seed < 0):
            raise PolicyError(f"seed must be a whole number, at least 0, not {seed!r}")
        object.__setattr__(self, "_generator", np.random.default_rng(seed))

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        return cls(knobs.get("seed"))

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        rank = np.floor(self._generator.random(len(allowed)) * allowed.sum(axis=1))  # (n,), among the allowed arms
        chosen: IndexArray = (allowed.cumsum(axis=1) > rank[:, None]).argmax(axis=1)
        return chosen

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """None: to this policy all arms are alike."""
        return np.zeros(len(arms))
