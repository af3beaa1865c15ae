import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from routing_policies.costs import expected_cost, normalise, tier_cost

INPUT, OUTPUT = [0.025, 0.1, 0.5], [0.1, 0.4, 2.0]  # USD per million tokens


def test_tier_cost_counts_input_and_output() -> None:
    cost = tier_cost([100, 100, 200], [10, 10, 1000], INPUT, OUTPUT)
    np.testing.assert_allclose(cost, [3.5e-6, 1.4e-5, 2.1e-3], rtol=1e-12)


def test_normalise_spans_zero_to_one() -> None:
    np.testing.assert_allclose(normalise([3.0, 1.0, 2.0]), [1.0, 0.0, 0.5])


def test_arms_of_equal_cost_normalise_to_zeros() -> None:
    np.testing.assert_array_equal(normalise([0.2, 0.2, 0.2]), [0, 0, 0])
    np.testing.assert_array_equal(normalise([0.7]), [0])


def test_expected_cost_of_one_count_for_all_arms() -> None:
    cost = expected_cost([100, 0], [10, 10, 1000], INPUT, OUTPUT)
    np.testing.assert_allclose(cost, [[3.5e-6, 1.4e-5, 2.05e-3], [1e-6, 4e-6, 2e-3]], rtol=1e-12)


def test_expected_cost_of_counts_per_arm() -> None:
    cost = expected_cost([[100, 100, 200]], [10, 10, 1000], INPUT, OUTPUT)
    np.testing.assert_allclose(cost, [tier_cost([100, 100, 200], [10, 10, 1000], INPUT, OUTPUT)], rtol=1e-12)


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=8))
def test_normalised_costs_keep_the_order(tier: list[float]) -> None:
    scaled = normalise(tier)
    assert scaled.min() == 0
    assert scaled.max() in (0, 1)
    assert (np.diff(scaled[np.argsort(tier)]) >= 0).all()
