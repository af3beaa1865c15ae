"""What a policy is: success probabilities and costs in, arm indices out.

One vectorised definition serves one online request and a 5,000-problem sweep alike. A policy is a frozen
dataclass whose fields are its knobs; `load(name)` finds it by its file's name.
"""

import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.intp]
BoolArray = NDArray[np.bool_]

NAMES = ("utility", "cascade", "min_success", "target_accuracy", "max_success", "min_cost", "random")
"""The policies a configuration or a client may name."""


class PolicyError(ValueError):
    """A knob out of its range, an unknown policy or variant, or input that no decision can rest on."""


class Policy(ABC):
    """Chooses one arm per row. Arms keep the configuration's order; ties go to the first."""

    needs_success: ClassVar[bool] = True
    """False where the decision does not read success probabilities, so that no probe need run."""
    reads_costs_alone: ClassVar[bool] = False
    """Whether equal costs of equal arms always lead to the same choice."""
    draws: ClassVar[bool] = False
    """Whether chance takes one of the allowed arms, each as likely as the others."""
    knob: ClassVar[str | None] = None
    """The `routing` field that `auto-<policy>-<value>` sets."""

    def choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray | None = None) -> IndexArray:
        """Choose an arm for each of n prompts among k arms.

        Args:
            success: calibrated success probabilities, (n, k).
            cost: expected cost of one answer in USD, (n, k).
            allowed: which arms may be chosen, (n, k); None allows all.

        Returns:
            Arm indices, (n,).

        Raises:
            PolicyError: shapes differ, a value is NaN or infinite, or a row allows no arm.
        """
        if success.ndim != 2 or success.shape != cost.shape:
            raise PolicyError(f"success {success.shape} and cost {cost.shape} must be the same (prompts, arms) matrix")
        if allowed is None:
            allowed = np.ones(success.shape, dtype=np.bool_)
        if allowed.shape != success.shape:
            raise PolicyError(f"allowed {allowed.shape} must have the shape of success {success.shape}")
        if not allowed.any(axis=1).all():
            raise PolicyError("every prompt must be allowed at least one arm")
        read = {"costs": cost} | ({"success probabilities": success} if self.needs_success else {})
        for what, values in read.items():
            if not np.isfinite(values[allowed]).all():
                raise PolicyError(f"{what} of allowed arms must be finite numbers, not NaN or infinite")
        return self._choose(success, cost, allowed)

    @classmethod
    @abstractmethod
    def from_knobs(cls, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Self:
        """A policy from the words of the API's `routing` object (`lambda`, `variant`, `value`, `thresholds`,
        `min_success`, `accuracy`) and of a tuning file (`table`). Words of other policies are ignored: one
        request may set several policies' knobs.

        Args:
            tier_cost: mean USD of one answer per arm of the whole configured pool, which cost scales refer to.

        Raises:
            PolicyError: a knob is out of range, of the wrong type, or missing; names the knob and what it may be.
        """

    @abstractmethod
    def _choose(self, success: FloatArray, cost: FloatArray, allowed: BoolArray) -> IndexArray: ...

    def infeasible(self, success: FloatArray, arms: IndexArray) -> BoolArray:
        """Where the policy's own target is missed by the arms it chose, (n,)."""
        return np.zeros(len(arms), dtype=np.bool_)

    def gain(self, success: FloatArray, cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
        """How much better, by this policy's lights, one arm is than another: (n, k), (n, k), (n,), (n,) -> (n,).

        Policies that weigh probability against cost answer in units of success probability, others in success
        probability itself, or, where they compare costs, in the share of `than`'s cost that is saved.
        """
        return column(success, arms) - column(success, than)


def column(values: FloatArray, arms: IndexArray) -> FloatArray:
    """Each row's value of its arm: (n, k), (n,) -> (n,)."""
    picked: FloatArray = values[np.arange(len(arms)), arms]
    return picked


def saving(cost: FloatArray, arms: IndexArray, than: IndexArray) -> FloatArray:
    """Which share of one arm's cost another saves, (n, k), (n,), (n,) -> (n,); negative where it costs more."""
    now, then = column(cost, than), column(cost, arms)
    return share(now - then, now, then)


def share(of: FloatArray, one: FloatArray, other: FloatArray) -> FloatArray:
    """In relation to the larger of two values, (n,) each; 0 of 0 is 0."""
    shares: FloatArray = of / np.maximum(np.maximum(one, other), np.finfo(np.float64).tiny)
    return shares


def load(name: str) -> type[Policy]:
    """The policy class of `routing_policies/<name>.py`.

    Raises:
        PolicyError: no such policy.
    """
    if name not in (*NAMES, "oracle", "oracle_utility"):
        raise PolicyError(f"unknown policy {name!r}: choose one of {', '.join(NAMES)}")
    module = import_module(f"routing_policies.{name}")
    policy: type[Policy] = getattr(module, "".join(part.capitalize() for part in name.split("_")))
    return policy


def best(score: FloatArray, allowed: BoolArray) -> IndexArray:
    """The first allowed arm with the highest score in each row: (n, k), (n, k) -> (n,)."""
    arms: IndexArray = np.where(allowed, score, -np.inf).argmax(axis=1)
    # A row whose every allowed score is -inf would name arm 0 even where arm 0 is not allowed.
    first_allowed: IndexArray = allowed.argmax(axis=1)
    rows = np.arange(len(arms))
    chosen: IndexArray = np.where(allowed[rows, arms], arms, first_allowed)
    return chosen


def number(name: str, value: Any, low: float, high: float = sys.float_info.max) -> float:
    """The value of a knob, checked: a finite number in [low, high].

    Raises:
        PolicyError: it is anything else; names the knob and what it may be.
    """
    # NaN fails every comparison; a bool is an int to Python but no amount of anything.
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        bounds = f"at least {low:g}" if high == sys.float_info.max else f"from {low:g} to {high:g}"
        raise PolicyError(f"{name} must be a finite number {bounds}, not {value!r}")
    return float(value)


def tier_costs(costs: tuple[float, ...], arms: int) -> FloatArray:
    """The pool's tier costs as an array, (k,).

    Raises:
        PolicyError: there are not as many as success has arms.
    """
    if len(costs) != arms:
        raise PolicyError(f"success has {arms} arms, tier_cost {len(costs)}: give both for the whole pool")
    return np.asarray(costs, dtype=np.float64)


def build(name: str, knobs: Mapping[str, Any], tier_cost: tuple[float, ...]) -> Policy:
    """`load(name).from_knobs(knobs, tier_cost)`; see there.

    Raises:
        PolicyError: unknown policy, or a knob out of range.
    """
    return load(name).from_knobs(knobs, tier_cost)
