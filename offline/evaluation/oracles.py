"""Bounds that peek at the test problems' answers, each named for what it peeks at."""

from collections.abc import Sequence

import numpy as np

from offline.evaluation.methods import Method, Trial, measured, shares
from offline.evaluation.samples import Arm
from offline.evaluation.sweep import multipliers, of_chosen
from routing_policies.base import FloatArray, IndexArray
from routing_policies.oracle import Oracle

HALVINGS = 8
WEIGHTS = 150
TIE = 1e-9
"""Of equal success rates the cheapest: a cost this small decides nothing else."""

Half = tuple[FloatArray, FloatArray]
"""Success rate and mean USD over some of the answers, (n, arms) each."""


def limit(trial: Trial, seed: int) -> Method:
    """The best that true success rates and costs allow before generation: each problem's arm is chosen by one half of
    its answers and judged by the other, averaged over swaps and random halves. All arms have two answers at least.
    """
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(HALVINGS):
        halves = [np.array_split(rng.permutation(arm.k), 2) for arm in trial.samples.arms]
        first, second = (_half(trial.samples.arms, [half[side] for half in halves]) for side in (0, 1))
        pairs += [(first, second), (second, first)]
    return _omniscient(trial, "limit", "limit (half the answers choose, half judge)", pairs)


def in_sample(trial: Trial) -> Method:
    """Chosen and judged on the same answers: it takes luck for knowledge, so it promises more than can be had."""
    every = _half(trial.samples.arms, [np.arange(arm.k) for arm in trial.samples.arms])
    label = "oracle, in-sample"
    return _omniscient(trial, "oracle_in_sample", label, [(every, every)])


def research(trial: Trial) -> Method:
    """The research code's oracle: the cheapest arm whose single answer is right, else the cheapest; the mean over the
    answers."""
    arms, usd = trial.samples.arms, trial.samples.usd
    k = min(arm.k for arm in arms)
    correct, cost, mix = np.zeros(len(usd)), np.zeros(len(usd)), np.zeros(len(arms))
    for sample in range(k):
        right = np.stack([arm.correct[:, sample] for arm in arms], axis=1)
        chosen = Oracle().choose(right, usd)
        correct += of_chosen(right, chosen) / k
        cost += of_chosen(usd, chosen) / k
        mix += shares(chosen, len(arms)) / k
    label = "oracle, cheapest right answer"
    return measured(trial, "oracle_research", label, "oracle", correct[None], cost[None], mix)


def _half(arms: Sequence[Arm], picked: Sequence[IndexArray]) -> Half:
    rate = np.stack([arm.correct[:, some].mean(axis=1) for arm, some in zip(arms, picked, strict=True)], axis=1)
    usd = [arm.input_usd + arm.output_usd[:, some].mean(axis=1) for arm, some in zip(arms, picked, strict=True)]
    return rate, np.stack(usd, axis=1)


def _omniscient(trial: Trial, name: str, label: str, pairs: Sequence[tuple[Half, Half]]) -> Method:
    """Utility by measured rates and costs: over pairs of answers to choose by and answers to judge by."""
    rate, usd = trial.samples.success_rate, trial.samples.usd
    mus = multipliers(rate, usd, WEIGHTS) + TIE / usd.max(initial=TIE)
    correct, cost = np.zeros((len(mus), len(rate))), np.zeros((len(mus), len(rate)))
    mixes = np.zeros((len(mus), len(trial.arms)))
    for (known_rate, known_usd), (judged_rate, judged_usd) in pairs:
        arms = np.stack([(known_rate - mu * known_usd).argmax(axis=1) for mu in mus])
        correct += of_chosen(judged_rate, arms) / len(pairs)
        cost += of_chosen(judged_usd, arms) / len(pairs)
        mixes += np.stack([(arms == arm).mean(axis=1) for arm in range(len(trial.arms))], axis=1) / len(pairs)
    chosen = _at_parity(correct.mean(axis=1), cost.mean(axis=1), float(rate[:, trial.best_arm].mean()))
    settings = [{"mu": float(mu)} for mu in mus]
    return measured(trial, name, label, "oracle", correct, cost, mixes[chosen], settings, chosen, peak=0)


def _at_parity(accuracy: FloatArray, cost: FloatArray, goal: float) -> int:
    """The cheapest setting as accurate as the best single arm, on these very problems; else the most accurate."""
    enough = accuracy >= goal - 1e-12
    return int(np.where(enough, cost, np.inf).argmin() if enough.any() else accuracy.argmax())
