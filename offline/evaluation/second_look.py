"""A cascade that looks at the first answer: an arm answers, and what its own model makes of that answer (`looks`) says
how likely it is right; where that is too little, the best arm is asked too. All that is read, answered and answered
again is paid for.

Before anything is generated, arms compete by success probability less the weighted cost, as `target_accuracy` has them.
Looking competes with them: it is worth what the arm's own answer is, and a share of what the best arm could still gain
where that answer is wrong. The weight, and the share, are chosen on validation problems.
"""

from dataclasses import dataclass

import numpy as np

from offline.evaluation.judge import Validation, corrected
from offline.evaluation.methods import Method, Trial, measured, shares
from offline.evaluation.samples import Samples
from offline.evaluation.sweep import multipliers, of_chosen
from offline.policy_search import Target, best_setting
from routing_policies.base import FloatArray

WEIGHTS = 100
HOPES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of what looking could gain at most that it may be taken to gain."""


@dataclass(frozen=True)
class Looks:
    """What the answers of one arm look like to its model, for the problems of one split."""

    arm: int
    success: FloatArray
    """Probability that the answer is right, (n, answers)."""
    usd: FloatArray
    """What reading the answer costs, (n, answers); the model that gave it has read the prompt."""


def second_look(
    trial: Trial, validation: Validation, answers: Samples, looks: tuple[Looks, Looks], target: Target
) -> Method:
    """At the weight and hope that serve the target best on validation problems.

    Args:
        answers: to the validation problems.
        looks: at the validation and at the test problems.
    """
    before, now = looks
    settings = [
        {"mu": mu, "hope": hope}
        for mu in multipliers(validation.success, validation.cost, WEIGHTS).tolist()
        for hope in HOPES
    ]
    best = trial.best_arm  # as validation problems say: the test problems' own rates choose nothing
    swept = [answer(before, validation, answers, best, **one) for one in settings]
    always_best = validation.accuracy(np.full(len(validation.success), validation.best_arm))
    accuracy = np.array([always_best + _gain(one, validation) for one in swept])
    usd = np.array([one.usd.mean() for one in swept]) + validation.prefill_usd
    place = best_setting(accuracy, usd, target, always_best)
    chosen = int(accuracy.argmax()) if place is None else place
    done = [answer(now, trial.known, trial.samples, best, **one) for one in settings]
    label = f"cascade that looks at {trial.arms[now.arm]}'s answer"
    return measured(
        trial,
        "second_look",
        label,
        "baseline",
        np.stack([one.correct for one in done]),
        np.stack([one.usd for one in done]) + trial.known.prefill_usd,
        done[chosen].mix,
        settings,
        chosen,
        peak=int(accuracy.argmax()),
    )


@dataclass(frozen=True)
class Answered:
    """What comes of n problems at one setting, on average over the answers that are looked at."""

    predicted: FloatArray
    """Probability that the answer given is right, (n,)."""
    correct: FloatArray
    """Share of right ones, (n,)."""
    usd: FloatArray
    """(n,)"""
    mix: FloatArray
    """Share of the problems whose answer is each arm's, (arms,)."""


def answer(looks: Looks, known: Validation, samples: Samples, best: int, mu: float, hope: float) -> Answered:
    """
    Args:
        best: the arm that is asked where an answer does not look right.
        mu: weight of cost, per USD.
        hope: see `HOPES`.
    """
    k = looks.success.shape[1]
    arm = samples.arms[looks.arm]
    value = known.success - mu * known.cost  # (n, arms)
    first = value.argmax(axis=1)
    p, right = known.success[:, looks.arm], arm.correct[:, :k]
    looking = value[:, looks.arm] - mu * looks.usd.mean(axis=1) + hope * (1 - p) * np.maximum(value[:, best], 0.0)
    looked = (looking > value.max(axis=1)) & (best != looks.arm)
    again = looked[:, None] & (looks.success < value[:, [best]])  # (n, k)
    share = again.mean(axis=1)
    cost = arm.input_usd + arm.output_usd[:, :k].mean(axis=1) + looks.usd.mean(axis=1) + share * samples.usd[:, best]

    def given(of_arms: FloatArray, of_looks: FloatArray) -> FloatArray:
        looked_at = np.where(again, of_arms[:, [best]], of_looks).mean(axis=1)
        return np.where(looked, looked_at, of_chosen(of_arms, first))

    mix = shares(np.where(looked, looks.arm, first), len(samples.arms))
    moved = float((looked * share).mean())
    mix = mix + moved * (np.eye(len(mix))[best] - np.eye(len(mix))[looks.arm])
    return Answered(
        predicted=given(known.success, looks.success),
        correct=given(samples.success_rate, right),
        usd=np.where(looked, cost, of_chosen(samples.usd, first)),
        mix=mix,
    )


def _gain(answered: Answered, known: Validation) -> float:
    """In accuracy, over the best single arm: as predicted, corrected by what was measured (see `judge`)."""
    best = known.best_arm
    return corrected(answered.predicted - known.success[:, best], answered.correct - known.success_rate[:, best])
