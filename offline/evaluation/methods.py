"""A way of answering all problems, measured on the test problems at each of its settings and in every draw."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from offline.evaluation.judge import Validation
from offline.evaluation.samples import Samples
from offline.evaluation.sweep import of_chosen
from routing_policies.base import FloatArray, IndexArray

Group = Literal["policy", "single", "control", "baseline", "oracle"]
Setting = Mapping[str, Any] | None


@dataclass(frozen=True)
class Trial:
    """The test problems, and what methods are judged by."""

    samples: Samples
    known: Validation
    """What the gateway knows of them; its measured rates choose nothing."""
    weights: FloatArray
    """Of the problems as they are, then in each bootstrap draw, (1 + draws, n)."""
    best_arm: int
    """The best single arm, chosen on validation problems."""

    @property
    def arms(self) -> list[str]:
        return [arm.name for arm in self.samples.arms]


@dataclass(frozen=True)
class Method:
    name: str
    label: str
    group: Group
    settings: Sequence[Setting]
    chosen: int
    """The setting chosen on validation problems, but for oracles."""
    accuracy: FloatArray
    """Of each setting, (1 + draws, settings): as the problems are, then in each draw."""
    cost_usd: FloatArray
    """Mean USD per problem, what its probes read included, (1 + draws, settings)."""
    correct: FloatArray
    """Of each problem at the chosen setting: the probability that its answer is right, (n,)."""
    usd: FloatArray
    """(n,)"""
    mix: FloatArray
    """Share of the problems whose answer is each arm's, at the chosen setting, (arms,)."""
    arms: IndexArray | None = None
    """Who answers, at the chosen setting, (n,); None where it is not one arm per problem."""
    peak: int | None = None
    """The setting of most accuracy, chosen on validation problems."""
    resampled: Sequence[int] = ()
    """The settings that resampled validation problems choose."""
    best_arm_share: FloatArray | None = None
    """Share of the problems that each setting sends to the best single arm, (1 + draws, settings)."""


def measured(
    trial: Trial,
    name: str,
    label: str,
    group: Group,
    correct: FloatArray,
    usd: FloatArray,
    mix: FloatArray,
    settings: Sequence[Setting] = (None,),
    chosen: int = 0,
    **rest: Any,
) -> Method:
    """
    Args:
        correct: at each setting, the probability that each problem's answer is right, (settings, n).
        usd: (settings, n).
        mix: at the chosen setting, (arms,).
        rest: further fields of `Method`.
    """
    accuracy, cost_usd = trial.weights @ correct.T, trial.weights @ usd.T
    return Method(name, label, group, settings, chosen, accuracy, cost_usd, correct[chosen], usd[chosen], mix, **rest)


def routed(
    trial: Trial,
    name: str,
    label: str,
    group: Group,
    arms: IndexArray,
    prefill_usd: float,
    settings: Sequence[Setting] = (None,),
    chosen: int = 0,
    **rest: Any,
) -> Method:
    """A method that sends each problem to one arm: arms (settings, n)."""
    return measured(
        trial,
        name,
        label,
        group,
        of_chosen(trial.samples.success_rate, arms),
        of_chosen(trial.samples.usd, arms) + prefill_usd,
        shares(arms[chosen], len(trial.arms)),
        settings,
        chosen,
        arms=arms[chosen],
        best_arm_share=trial.weights @ (arms == trial.best_arm).T,
        **rest,
    )


def shares(arms: IndexArray, k: int) -> FloatArray:
    """Of the problems, by arm: (n,) -> (k,)."""
    counts: FloatArray = np.bincount(arms, minlength=k) / len(arms)
    return counts
