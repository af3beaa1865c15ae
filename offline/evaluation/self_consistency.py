"""Routing after generation, as research does it: k answers of a cheap arm; where they disagree, the best arm is asked.

Disagreement is the entropy of the answers as extracted; where it is at most the threshold, the majority's answer is
kept. All k answers are paid for, and the best arm's beside where it is asked. Arm and threshold are chosen by what was
measured on validation problems, for there are no predictions to correct. Source of the measure: Wang et al.,
"Self-consistency improves chain of thought reasoning in language models", 2023.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offline.evaluation.methods import Method, Trial, measured
from offline.evaluation.samples import Arm, Samples
from offline.evaluation.sweep import grid
from offline.policy_search import Target, best_setting
from routing_policies.base import FloatArray

THRESHOLDS = 100


@dataclass(frozen=True)
class Votes:
    """What k answers of an arm to each of n problems come to."""

    entropy: FloatArray
    """Of the answers, in nats, (n,)."""
    correct: FloatArray
    """Whether the majority's answer is right, (n,)."""
    usd: FloatArray
    """Of all k answers, the prompt's once, (n,)."""


def self_consistency(trial: Trial, validation: Samples, target: Target) -> Method | None:
    """The cheap arm and threshold that serve the target best on validation problems; None where there are no answers
    to compare."""
    best_arm = trial.best_arm
    known: list[tuple[int, Votes, Votes]] = []
    for arm, (first, second) in enumerate(zip(validation.arms, trial.samples.arms, strict=True)):
        k = min(first.k, second.k)
        if trial.known.tier_cost[arm] >= trial.known.tier_cost[best_arm] or k < 2:
            continue
        if first.answers is not None and second.answers is not None:
            known.append((arm, votes(first, first.answers, k), votes(second, second.answers, k)))
    if not known:
        return None
    goal = float(validation.success_rate[:, best_arm].mean())
    options = []
    for arm, before, now in known:
        thresholds = np.append(-1.0, grid(before.entropy, 0.0, float(before.entropy.max()), THRESHOLDS))
        correct, usd = escalate(before, validation.arms[best_arm], thresholds)
        accuracy, cost = correct.mean(axis=1), usd.mean(axis=1)
        place = best_setting(accuracy, cost, target, goal)
        met = place is not None
        place = int(accuracy.argmax()) if place is None else place
        options.append(((not met, cost[place] if met else -accuracy[place]), arm, now, thresholds, place))
    _, arm, now, thresholds, place = min(options, key=lambda option: option[0])
    correct, usd = escalate(now, trial.samples.arms[best_arm], thresholds)
    kept = float((now.entropy <= thresholds[place]).mean())
    mix = np.eye(len(trial.arms))[arm] * kept + np.eye(len(trial.arms))[best_arm] * (1 - kept)
    k = min(validation.arms[arm].k, trial.samples.arms[arm].k)
    label = f"self-consistency: {k} answers of {trial.arms[arm]}, else {trial.arms[best_arm]}"
    settings = [{"entropy": threshold} for threshold in thresholds.tolist()]
    return measured(trial, "self_consistency", label, "baseline", correct, usd, mix, settings, place)


def votes(arm: Arm, answers: Sequence[Sequence[str]], k: int) -> Votes:
    """Of each problem's first k answers."""
    entropy, correct = np.empty(len(answers)), np.empty(len(answers))
    for i, given in enumerate(answers):
        counts = Counter(given[:k])
        share = np.array(list(counts.values())) / k
        entropy[i] = -(share @ np.log(share))
        correct[i] = arm.correct[i, given.index(counts.most_common(1)[0][0])]
    return Votes(entropy.clip(min=0.0), correct, arm.input_usd + arm.output_usd[:, :k].sum(axis=1))


def escalate(cheap: Votes, best: Arm, thresholds: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Probability that each problem's answer is right, and its USD, at each threshold: (thresholds, n) each."""
    keep = cheap.entropy <= thresholds[:, None] + 1e-9
    correct = np.where(keep, cheap.correct, best.correct.mean(axis=1))
    return correct, cheap.usd + np.where(keep, 0.0, best.usd)
