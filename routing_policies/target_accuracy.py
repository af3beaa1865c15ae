"""The least expected cost at a given mean accuracy: argmax of p - mu x expected cost.

mu (1/USD) is the Lagrange multiplier of the accuracy constraint: among all ways to choose arms by the same
probabilities, none is cheaper at the accuracy that this one predicts. `pika tune` tabulates accuracy -> mu.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray, Policy, PolicyError, best, column, number


@dataclass(frozen=True)
class TargetAccuracy(Policy):
    knob: ClassVar[str | None] = "accuracy"

    accuracy: float
    """Mean accuracy over requests like those the table was made from."""
    table: tuple[tuple[float, float], ...]
    """(accuracy, mu), accuracies rising and mu falling."""

    def __post_init__(self) -> None:
        number("accuracy", self.accuracy, low=0, high=1)
        for accuracy, mu in self.table:
            number("table", accuracy, low=0, high=1)
            number("table", mu, low=0)
        if not self.table or (np.diff(self.table, axis=0) * [1, -1] < 0).any():
            raise PolicyError(
                "table must list [accuracy, mu] with accuracy rising and mu falling: run `pika tune` again"
            )

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        if "table" not in knobs:
            raise PolicyError(
                "target_accuracy needs a table of this pool: run `pika tune` and name the file that it writes as "
                "policy.tuned in the configuration"
            )
        if "accuracy" not in knobs:
            raise PolicyError("target_accuracy needs accuracy, a number from 0 to 1, such as auto-target_accuracy-0.9")
        try:
            table = tuple((accuracy, mu) for accuracy, mu in knobs["table"])
        except (TypeError, ValueError):
            raise PolicyError("table must be a list of [accuracy, mu] pairs: run `pika tune` again") from None
        return cls(knobs["accuracy"], table)

    @property
    def beyond(self) -> bool:
        """Whether the target is above the highest accuracy that this pool's probabilities predict."""
        return self.accuracy > self.table[-1][0]

    @property
    def mu(self) -> float:
        accuracies, mus = zip(*self.table, strict=True)
        return 0.0 if self.beyond else float(np.interp(self.accuracy, accuracies, mus))

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        return best(success - self.mu * cost, allowed)

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """In what is maximised, p - mu x expected cost."""
        score = success - self.mu * cost
        return column(score, arms) - column(score, than)

    def infeasible(self, success: FloatArray, arms: IndexArray) -> BoolArray:
        """Everywhere where the target is beyond the table, (n,)."""
        return np.full(len(arms), self.beyond)
