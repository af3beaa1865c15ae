"""The guarantee of `min_success` thresholds, by simulation: seeded pools whose true success is known."""

import numpy as np
import pytest

from offline.conformal import TARGETS, guarantee, is_below
from probes.base import FloatArray
from routing_policies.min_success import MinSuccess

COST = (1.0, 4.0, 20.0)
K = 8
LEVEL = 0.9


def pool(n: int, rng: np.random.Generator, boast: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What probes say of n problems, and the truth: (n, 3) each, with costs. `boast` > 1: they promise too much."""
    ease = rng.normal(size=(n, 1))
    logit = 1.5 * ease + np.array([0.0, 1.0, 2.2]) + rng.normal(0, 0.7, size=(n, 3))
    truth = 1 / (1 + np.exp(-logit))
    said = 1 / (1 + np.exp(-boast * logit))
    return said, np.broadcast_to(COST, said.shape), truth


@pytest.mark.parametrize(("boast", "target"), [(1.0, 0.9), (1.6, 0.9), (2.5, 0.9), (3.0, 0.8)])
def test_targets_are_missed_no_more_often_than_the_level_allows(boast: float, target: float) -> None:
    rng = np.random.default_rng(0)
    everyone = pool(200_000, rng, boast)

    def true_success(threshold: float) -> float:
        success, cost, truth = everyone
        policy = MinSuccess(threshold)
        arms = policy.choose(success, cost)
        feasible = ~policy.infeasible(success, arms)
        return float(truth[np.arange(len(arms)), arms][feasible].mean())

    found = []
    for _ in range(200):
        success, cost, truth = pool(1000, rng, boast)
        [(_, threshold)] = guarantee(success, cost, rng.binomial(K, truth) / K, LEVEL, targets=[target])
        found.append(threshold)
    thresholds = [threshold for threshold in found if threshold is not None]
    assert len(thresholds) > 100  # a guarantee that is hardly ever given is none
    reached = {threshold: true_success(threshold) for threshold in set(thresholds)}
    misses = sum(reached[threshold] < target for threshold in thresholds)
    noise = 2 * np.sqrt(len(found) * LEVEL * (1 - LEVEL))
    assert misses <= (1 - LEVEL) * len(found) + noise
    assert min(thresholds) >= target
    # What the probes promise is not enough where they boast, so the test is not idle.
    assert (true_success(target) >= target) == (boast == 1)


def test_calibrated_probabilities_are_taken_at_their_word() -> None:
    rng = np.random.default_rng(1)
    success, cost, truth = pool(2000, rng, boast=1.0)
    table = guarantee(success, cost, rng.binomial(K, truth) / K, LEVEL)
    assert tuple(target for target, _ in table) == TARGETS
    assert all(threshold == target for target, threshold in table if 0.6 <= target <= 0.95)


def test_a_file_in_order_of_difficulty_changes_nothing() -> None:
    rng = np.random.default_rng(4)
    missed = 0
    for seed in range(100):
        rate = np.sort(rng.binomial(K, rng.beta(8, 2, size=400)) / K)[::-1, None]  # the easy ones first; mean .8
        said = np.full((400, 1), 0.99)
        missed += guarantee(said, said, rate, LEVEL, seed, [0.8]) != [(0.8, None)]
    assert missed <= 10 + 2 * np.sqrt(100 * 0.1 * 0.9)


def test_what_is_out_of_reach_is_said() -> None:
    rng = np.random.default_rng(2)
    said = np.full((500, 1), 0.9)
    table = dict(guarantee(said, np.ones((500, 1)), rng.binomial(K, np.full((500, 1), 0.7)) / K, LEVEL))
    assert table[0.6] == 0.6
    assert table[0.72] is None
    assert table[0.95] is None
    assert guarantee(said[:0], said[:0], said[:0], LEVEL, targets=[0.5]) == [(0.5, None)]


@pytest.mark.parametrize("n", [20, 300])
@pytest.mark.parametrize("risk", [0.05, 0.4])
def test_the_bound_errs_no_more_often_than_it_says(n: int, risk: float) -> None:
    """At the edge, where the mean is the risk itself; for single samples and for shares of eight."""
    rng = np.random.default_rng(3)
    for losses in (
        rng.binomial(1, risk, size=(2000, n)).astype(float),
        rng.binomial(K, rng.beta(2 * risk, 2 * (1 - risk), size=(2000, n))) / K,
    ):
        for error in (0.02, 0.1, 0.3):
            wrongly = np.mean([is_below(row, risk, error) for row in losses])
            assert wrongly <= error + 2 * np.sqrt(error * (1 - error) / 2000)
            if n == 300:
                assert wrongly > error / 6  # nor is it so cautious as to be of no use


def test_the_bound_of_some_plain_cases() -> None:
    assert is_below(np.zeros(200), 0.05, 0.05)
    assert not is_below(np.zeros(20), 0.05, 0.05)  # 0.95^20 = 0.36
    assert not is_below(np.full(1000, 0.05), 0.05, 0.05)
    assert is_below(np.full(1000, 0.04), 0.05, 0.05)
    assert not is_below(np.ones(9), 0.5, 0.05)
    assert not is_below(np.zeros(0), 0.5, 0.05)
