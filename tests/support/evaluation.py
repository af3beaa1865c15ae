"""Pools with answers drawn at known rates, for tests of evaluations."""

from collections.abc import Sequence

import numpy as np

from offline.evaluate import Outcomes
from offline.evaluation.bootstrap import weights
from offline.evaluation.evaluation import Ask, Known
from offline.evaluation.judge import Validation
from offline.evaluation.methods import Trial
from offline.evaluation.policies import LABELS
from offline.evaluation.samples import Arm, Samples
from offline.policy_search import Target
from routing_policies.base import FloatArray

TIER = (1e-6, 4e-6, 8e-5)


def samples(
    correct: Sequence[FloatArray],
    usd: Sequence[FloatArray],
    texts: Sequence[str] | None = None,
    answers: Sequence[list[list[str]]] | None = None,
) -> Samples:
    """
    Args:
        correct: of each arm, 0 or 1, (n, k).
        usd: of each arm, USD of each answer, (n, k).
    """
    n = len(correct[0])
    problems = [f"problem {i}" for i in range(n)] if texts is None else list(texts)
    rate = np.stack([one.mean(axis=1) for one in correct], axis=1)
    tokens = np.array([[len(problem) / 4] * len(correct) for problem in problems])
    outcomes = Outcomes([f"p{i}" for i in range(n)], problems, rate, tokens, "0" * 64)
    arms = tuple(
        Arm(f"arm{i}", f"model{i}", right, cost * 1e6, np.zeros(n), cost, None if answers is None else answers[i])
        for i, (right, cost) in enumerate(zip(correct, usd, strict=True))
    )
    return Samples(outcomes, arms, "made", 0, None)


def drawn(n: int, seed: int, k: int = 8, informed: bool = True, name: str = "p") -> Known:
    """Three arms, the dearest the best. Answers are right with exactly the probabilities known, or, where not informed,
    with their mean, whatever the probabilities say."""
    rng = np.random.default_rng(seed)
    skill = np.array([0.0, 2.0, 3.0]) - rng.normal(0, 2, (n, 1)) + rng.normal(0, 1, (n, 3))
    p = 1 / (1 + np.exp(-skill))
    truth = p if informed else np.tile(p.mean(axis=0), (n, 1))
    expected = np.array(TIER) * rng.uniform(0.7, 1.3, (n, 1))
    correct = [(rng.random((n, k)) < truth[:, [arm]]).astype(float) for arm in range(3)]
    usd = [expected[:, [arm]] * rng.uniform(0.9, 1.1, (n, k)) for arm in range(3)]
    words = rng.choice(["apple", "book", "card", "coin", "tree"], (n, 6))
    found = samples(correct, usd, [f"{name}{i} {' '.join(row)}" for i, row in enumerate(words)])
    return Known(found, Validation(p, expected, found.success_rate, TIER, prefill_usd=1e-7))


def trial(known: Known, best_arm: int = 2, draws: int = 50, seed: int = 0) -> Trial:
    return Trial(known.samples, known.known, weights(len(known.samples.usd), draws, seed), best_arm)


def ask(target: str = "accuracy=always-best", draws: int = 200, texts: Sequence[str] = ("length", "tfidf")) -> Ask:
    return Ask(Target.parse(target), tuple(LABELS), texts, seed=0, draws=draws)
