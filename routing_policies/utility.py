"""Success probability against cost: the arm with the highest utility.

With p = success probability, c = tier cost min-max scaled over the whole configured pool, v = `value`:

    lambda (default)     p - lambda c                        also called balance_costs, og_<lambda>
    original             p v - c
    normalized           100 p v - v c / max c
    ratio                p / r
    success_per_dollar   p^2 / r
    threshold            -c where p >= 0.6, else p
    sigmoid              p v - (2 / (1 + exp(-c)) - 1)

A min-max scaled cost is always 0 somewhere, so the two quotients divide by r = tier cost / the dearest arm's.
`threshold` is kept as the research code has it: an arm below 0.6 outbids every arm above it, for -c <= 0 <= p.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from routing_policies.base import (
    BoolArray,
    FloatArray,
    IndexArray,
    Policy,
    PolicyError,
    best,
    column,
    number,
    share,
    tier_costs,
)
from routing_policies.costs import normalise

THRESHOLD = 0.6
MAX_VALUE = 1e12  # keeps p v finite

SCORES: dict[str, Callable[[FloatArray, FloatArray, "Utility"], FloatArray]] = {
    "lambda": lambda p, c, knobs: p - knobs.lam * c,
    "original": lambda p, c, knobs: p * knobs.value - c,
    "normalized": lambda p, c, knobs: 100 * p * knobs.value - knobs.value * c / (c.max() or 1),
    "ratio": lambda p, r, knobs: p / r,
    "success_per_dollar": lambda p, r, knobs: p**2 / r,
    "threshold": lambda p, c, knobs: np.where(p >= THRESHOLD, -c, p),
    "sigmoid": lambda p, c, knobs: p * knobs.value - (2 / (1 + np.exp(-c)) - 1),
}
QUOTIENTS = ("ratio", "success_per_dollar")


@dataclass(frozen=True)
class Utility(Policy):
    knob: ClassVar[str | None] = "lambda"

    tier_cost: tuple[float, ...]
    """Mean USD of one answer per arm of the whole pool, (k,)."""
    variant: str = "lambda"
    lam: float = 0.4
    """Cost weight; 0 ignores cost."""
    value: float = 1.0
    """What a correct answer is worth, in units of the pool's cost range."""

    def __post_init__(self) -> None:
        if self.variant not in SCORES:
            raise PolicyError(
                f"unknown variant {self.variant!r} of utility: choose one of {', '.join(SCORES)} "
                "(balance_costs and og_<lambda> are read as lambda)"
            )
        number("lambda", self.lam, low=0)
        number("value", self.value, low=0, high=MAX_VALUE)
        if self.variant in QUOTIENTS and min(self.tier_cost) <= 0:
            raise PolicyError(
                f"variant {self.variant!r} divides by tier cost and an arm is free: set prices and mean tokens above 0 "
                "for every arm, or choose the variant lambda"
            )

    @classmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        variant, lam = knobs.get("variant", cls.variant), knobs.get("lambda", cls.lam)
        if not isinstance(variant, str):
            raise PolicyError(f"variant must be one of {', '.join(SCORES)}, not {variant!r}")
        if variant == "balance_costs":
            variant = "lambda"
        elif variant.startswith("og_"):
            variant, lam = "lambda", _lambda_of(variant)
        return cls(tier_cost, variant, lam, knobs.get("value", cls.value))

    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray:
        return best(self._score(success), allowed)

    def _score(self, success: FloatArray) -> FloatArray:
        tier_costs(self.tier_cost, success.shape[1])  # raises where there are not as many
        return SCORES[self.variant](success, self._scaled, self)

    @cached_property
    def _scaled(self) -> FloatArray:
        """Tier costs on the variant's scale, (k,)."""
        tier = np.asarray(self.tier_cost, dtype=np.float64)
        return tier / tier.max() if self.variant in QUOTIENTS else normalise(tier)

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """In utility per unit of success probability; of the two quotients, the share of the higher one."""
        score = self._score(success)
        now, then = column(score, than), column(score, arms)
        if self.variant in QUOTIENTS:
            return share(then - now, then, now)
        weight = {"original": self.value, "normalized": 100 * self.value, "sigmoid": self.value}.get(self.variant, 1.0)
        return (then - now) / (weight or 1.0)


def _lambda_of(variant: str) -> float:
    try:
        return float(variant.removeprefix("og_"))
    except ValueError:
        raise PolicyError(f"variant {variant!r}: og_ is followed by lambda, such as og_0.4") from None
