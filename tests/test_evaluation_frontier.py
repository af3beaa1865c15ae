"""Frontiers, areas and bootstrap against plain loops."""

import itertools

import numpy as np
import pytest

from offline.evaluation.bootstrap import interval, resampled, weights
from offline.evaluation.frontier import frontier
from offline.evaluation.two_models import SHARES, apgr, cpt, recovered


def mixtures(cost: list[float], accuracy: list[float], budget: float) -> float:
    """The most accurate mixture of two points within a budget, by trying all pairs."""
    best = -1.0
    for i, j in itertools.product(range(len(cost)), repeat=2):
        if cost[i] <= budget and accuracy[i] > best:
            best = accuracy[i]
        if cost[i] < budget < cost[j]:
            share = (budget - cost[i]) / (cost[j] - cost[i])
            best = max(best, accuracy[i] + share * (accuracy[j] - accuracy[i]))
    return best


@pytest.mark.parametrize("seed", range(5))
def test_frontier_is_the_best_mixture_of_two_points(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, accuracy = rng.integers(1, 20, (4, 12)).astype(float), rng.integers(0, 10, (4, 12)) / 10
    found = frontier(cost, accuracy)
    for budget in rng.uniform(0, 25, 20):
        reached = found.accuracy_at(np.full(4, budget))
        for draw in range(4):
            if budget >= cost[draw].min():
                expected = mixtures(cost[draw].tolist(), accuracy[draw].tolist(), budget)
                assert reached[draw] == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(5))
def test_cost_of_an_accuracy_and_accuracy_of_a_cost_are_each_others_inverse(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, accuracy = rng.uniform(1, 2, (3, 30)), rng.uniform(0, 1, (3, 30))
    found = frontier(cost, accuracy)
    for share in (0.1, 0.5, 0.9):
        goal = found.accuracy[:, 0] + share * (found.accuracy[:, -1] - found.accuracy[:, 0])
        np.testing.assert_allclose(found.accuracy_at(found.cost_at(goal)), goal)
    assert np.isnan(found.cost_at(accuracy.max(axis=1) + 0.01)).all()
    np.testing.assert_allclose(found.cost_at(np.full(3, -1.0)), cost.min(axis=1))


@pytest.mark.parametrize("seed", range(5))
def test_area_is_that_of_a_fine_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cost, accuracy = rng.uniform(1, 3, (1, 9)), rng.uniform(0.3, 0.9, (1, 9))
    low, high, floor = np.array([0.8]), np.array([2.5]), np.array([0.2])
    found = frontier(cost, accuracy)
    area = found.area(low, high, floor)
    knots_x = np.concatenate([[0.8], found.cost[0], [9.0]])
    knots_y = np.concatenate([[0.2], found.accuracy[0], found.accuracy[0, -1:]])
    grid = np.linspace(0.8, 2.5, 200_001)
    assert area[0] == pytest.approx(np.interp((grid[1:] + grid[:-1]) / 2, knots_x, knots_y).mean(), abs=1e-6)


def test_one_point_is_a_frontier_too() -> None:
    found = frontier(np.array([[2.0, 2.0]]), np.array([[0.5, 0.5]]))
    assert found.cost_at(np.array([0.5])).tolist() == [2.0]
    assert found.area(np.array([1.0]), np.array([3.0]), np.array([0.5])).tolist() == [0.5]


def test_apgr_and_cpt_by_hand() -> None:
    """Weak .4, strong .8; half of the calls to the strong model give .7: three quarters of the gap."""
    share, accuracy = np.array([[0.5]]), np.array([[0.7]])
    pgr = recovered(share, accuracy, np.array([0.4]), np.array([0.8]))
    # Straight from (0, 0) over (.5, .75) to (1, 1): .1875 + .4375
    assert apgr(pgr)[0] == pytest.approx(0.625)
    assert cpt(pgr[0], 0.5) == pytest.approx(1 / 3, abs=1e-6)
    assert cpt(pgr[0], 0.8) == pytest.approx(0.6, abs=1e-6)
    assert cpt(np.zeros_like(SHARES), 0.5) is None
    assert np.isnan(recovered(share, accuracy, np.array([0.8]), np.array([0.8]))).all()


def test_random_routing_recovers_half_of_the_gap() -> None:
    share = np.linspace(0, 1, 7)[None]
    pgr = recovered(share, 0.3 + 0.4 * share, np.array([0.3]), np.array([0.7]))
    assert apgr(pgr)[0] == pytest.approx(0.5)
    assert cpt(pgr[0], 0.5) == pytest.approx(0.5)


def test_weights_are_shares_of_draws_with_replacement() -> None:
    drawn = resampled(40, 300, seed=1)
    np.testing.assert_allclose(drawn.sum(axis=1), 1)
    counts = drawn * 40
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert counts.var() == pytest.approx(1 - 1 / 40, rel=0.1)  # a multinomial's
    np.testing.assert_array_equal(drawn, resampled(40, 300, seed=1))
    np.testing.assert_allclose(weights(40, 5, seed=1)[0], 1 / 40)


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of differences of two correlated arms' accuracies on 150 problems, over 300 data sets."""
    rng = np.random.default_rng(0)
    drawn = weights(150, 300, seed=2)
    covered = 0
    for _ in range(300):
        p = rng.uniform(0, 1, 150)
        first, second = rng.random(150) < p, rng.random(150) < 0.8 * p  # on average .5 and .4
        found = interval(drawn @ (first.astype(float) - second))
        assert found is not None
        covered += found.low <= 0.1 <= found.high
    assert 0.90 <= covered / 300 <= 0.985


def test_what_is_not_defined_has_no_interval() -> None:
    assert interval(np.array([np.nan, 1.0, 2.0])) is None
    found = interval(np.array([1.0, np.nan, 1.0]))  # of two draws one
    assert found is not None
    assert (found.low, found.high, found.undefined) == (1.0, 1.0, 0.5)
