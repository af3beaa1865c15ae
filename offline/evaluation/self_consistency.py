"""Routing after generation, as research does it: k answers of a cheap arm; where they disagree, the best arm is asked.

Disagreement is the entropy of the answers as extracted; where it is at most the threshold, the majority's answer is
kept. All k answers are paid for, and the best arm's beside where it is asked. Arm, k and threshold are chosen by what
was measured on validation problems, for there are no predictions to correct. Source of the measure: Wang et al.,
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
ANSWERS = (2, 3, 5, 8)
"""How many are asked for, where there are as many."""


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
    best_arm, tier = trial.best_arm, trial.known.tier_cost
    goal = float(validation.success_rate[:, best_arm].mean())
    options = []
    for arm, (before, now) in enumerate(zip(validation.arms, trial.samples.arms, strict=True)):
        if tier[arm] >= tier[best_arm] or before.answers is None or now.answers is None:
            continue
        for k in (k for k in ANSWERS if k <= min(before.k, now.k)):
            voted = votes(before, before.answers, k)
            thresholds = np.append(-1.0, grid(voted.entropy, 0.0, float(voted.entropy.max()), THRESHOLDS))
            accuracy, usd = (each.mean(axis=1) for each in escalate(voted, validation.arms[best_arm], thresholds))
            place = best_setting(accuracy, usd, target, goal)
            if place is None:
                place = int(accuracy.argmax())
                rank = (1, -float(accuracy[place]))
            else:
                rank = (0, float(usd[place]))
            options.append((rank, arm, k, thresholds, place))
    if not options:
        return None
    _, arm, k, thresholds, place = min(options, key=lambda option: option[0])
    asked = trial.samples.arms[arm]
    assert asked.answers is not None
    voted = votes(asked, asked.answers, k)
    correct, usd = escalate(voted, trial.samples.arms[best_arm], thresholds)
    kept = float((voted.entropy <= thresholds[place]).mean())
    mix = np.eye(len(trial.arms))[arm] * kept + np.eye(len(trial.arms))[best_arm] * (1 - kept)
    label = f"self-consistency, {k} x {trial.arms[arm]}"
    settings = [{"entropy": threshold, "answers": k} for threshold in thresholds.tolist()]
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
