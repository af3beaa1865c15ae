"""Isotonic regression, against scikit-learn's."""

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression

from probes.isotonic import fit_isotonic


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    x = rng.integers(0, 50, n).astype(float) if seed % 2 else rng.normal(size=n)  # with ties, and without
    y = rng.binomial(8, 1 / (1 + np.exp(-rng.choice([-1, 0, 1]) * x / x.std() if n > 1 else 0))) / 8
    knots = fit_isotonic(x, y)
    new = np.concatenate([x, rng.uniform(x.min() - 1, x.max() + 1, 500)])
    theirs = IsotonicRegression(out_of_bounds="clip").fit(x, y).predict(new)
    np.testing.assert_allclose(np.interp(new, *knots.T), theirs, atol=1e-12)
    assert (np.diff(knots[:, 0]) > 0).all()
    assert (np.diff(knots[:, 1]) >= 0).all()


def test_a_level_takes_two_knots_at_most() -> None:
    x = np.arange(1000.0)
    assert fit_isotonic(x, (x > 499).astype(float)).tolist() == [[0, 0], [499, 0], [500, 1], [999, 1]]
    assert fit_isotonic(x, -x).tolist() == [[0, -499.5], [999, -499.5]]
    assert fit_isotonic(np.ones(3), np.array([0.0, 0.5, 1.0])).tolist() == [[1, 0.5]]
