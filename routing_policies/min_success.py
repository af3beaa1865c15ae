"""The arm with the least expected cost whose success probability meets a target, else the most probable one.

Where `pika tune --guarantee` has made a table, the threshold on probabilities is the one that was found to hold the
target, which is the target itself or above it.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, PolicyError, best, column, number, saving

Guarantee = tuple[tuple[float, float | None], ...]


@dataclass(frozen=True)
class MinSuccess(Policy):
    knob: ClassVar[str | None] = "min_success"

    min_success: float = 0.8
    """Success probability that every single answer shall have."""
    guarantee: Guarantee | None = None
    """(target, threshold), targets rising; a threshold of None: out of reach. None: the target is the threshold."""

    def __post_init__(self) -> None:
        number("min_success", self.min_success, low=0, high=1)
        for target, threshold in self.guarantee or ():
            number("guarantee", target, low=0, high=1)
            if threshold is not None:
                number("guarantee", threshold, low=target, high=1)
        if self.guarantee is not None and (np.diff([target for target, _ in self.guarantee]) <= 0).any():
            raise PolicyError("guarantee must list [target, threshold] with targets rising: run `pika tune` again")

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        table = knobs.get("guarantee")
        try:
            guarantee = None if table is None else tuple((target, threshold) for target, threshold in table)
        except (TypeError, ValueError):
            raise PolicyError("guarantee must be a list of [target, threshold] pairs: run `pika tune` again") from None
        return cls(knobs.get("min_success", cls.min_success), guarantee)

    @property
    def threshold(self) -> float:
        """What probabilities must reach; infinite where the target is out of reach.

        A target between two of the table's takes the next one's: what holds more holds less. No success at all needs
        no guarantee.
        """
        if self.guarantee is None or self.min_success == 0:
            return self.min_success
        place = bisect_left(self.guarantee, self.min_success, key=lambda row: row[0])
        threshold = self.guarantee[place][1] if place < len(self.guarantee) else None
        return np.inf if threshold is None else threshold

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        meets = allowed & (success >= self.threshold)
        chosen: IndexArray = np.where(meets.any(axis=1), best(-cost, meets), best(success, allowed))
        return chosen

    def infeasible(self, success: FloatArray, arms: IndexArray) -> BoolArray:
        """Where even the most probable arm is below the target, (n,)."""
        missed: BoolArray = column(success, arms) < self.threshold
        return missed

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """In success probability where `than` misses the target, else the share of its cost that is saved."""
        more = column(success, arms) - column(success, than)
        return np.where(column(success, than) < self.threshold, more, saving(cost, arms, than))
