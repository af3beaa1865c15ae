"""Mahalanobis distance and its percentile: parity with scikit-learn, and what far and near prompts get."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from probes import statistics
from probes.base import ProbeError
from probes.card import Site

SITE = Site(layer=1, position=-1)


def activations(n: int, d: int = 48, seed: int = 0) -> np.ndarray:
    """Correlated, off-centre, of very different scales."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).normal(size=(d, d)) * np.geomspace(10, 0.01, d)
    return (rng.normal(size=(n, d)) @ mix.T + 3).astype(np.float32)


def test_a_full_sketch_is_scikit_learns_ledoit_wolf_distance() -> None:
    train, others = activations(400), activations(50, seed=1)
    card, tensors = statistics.fit(train, activations(200, seed=2), SITE)
    assert len(tensors["statistics.variances"]) == 47
    # In double precision; the sketch has one direction less, whose variance is the remainder.
    expected = np.sqrt(LedoitWolf().fit(train.astype(np.float64)).mahalanobis(others.astype(np.float64)))
    np.testing.assert_allclose(statistics._distance(card.residual_variance, tensors, others), expected, rtol=1e-3)


def test_percentiles_are_even_for_like_prompts_and_full_for_others() -> None:
    card, tensors = statistics.fit(activations(3000), activations(2000, seed=1), SITE)
    like = statistics.percentile(card, tensors, activations(2000, seed=2))
    assert abs((like > 99).mean() - 0.01) < 0.008
    assert abs((like < 50).mean() - 0.5) < 0.04
    assert (statistics.percentile(card, tensors, activations(100, seed=3) + 30) == 100 * 2000 / 2001).all()
    assert like.min() >= 0
    assert like.max() <= 100


@pytest.mark.parametrize("m", [100, 130, 300])
def test_few_held_out_prompts_flag_no_more_of_the_like_than_they_may(m: int) -> None:
    """On average over held-out samples, as conformal prediction promises."""
    share = {99.0: 0.01, 95.0: 0.05}
    flagged = {q: [] for q in share}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        sets = [rng.normal(size=(n, 8)).astype(np.float32) for n in (400, m, 2000)]
        card, tensors = statistics.fit(sets[0], sets[1], SITE)
        found = statistics.percentile(card, tensors, sets[2])
        for q in share:
            flagged[q].append((found > q).mean())
    for q, most in share.items():
        noise = np.std(flagged[q]) / np.sqrt(60)
        # With m + 1 prompts a share is a multiple of 1 / (m + 1), so it may fall short by as much.
        assert most - 1 / (m + 1) - 3 * noise < np.mean(flagged[q]) < most + 3 * noise


def test_what_held_out_prompts_cannot_tell_is_flagged_nowhere() -> None:
    card, tensors = statistics.fit(activations(300, 8), activations(100, 8, seed=1), SITE)
    far = statistics.percentile(card, tensors, activations(50, 8, seed=2) + 1000)
    assert (far > 99).all()
    assert (far < 99.5).all()  # one in a hundred and one: 99.5 would be a guess
    with pytest.raises(ProbeError, match="need 100 held-out prompts; there are 99"):
        statistics.fit(activations(300, 8), activations(99, 8, seed=1), SITE)


def test_one_dimension_is_a_sketch_without_directions() -> None:
    rng = np.random.default_rng(0)
    train, held_out, new = (rng.normal(3, 2, size=(n, 1)).astype(np.float32) for n in (400, 200, 1000))
    card, tensors = statistics.fit(train, held_out, SITE)
    statistics.check(card, tensors, 1)
    assert card.residual_variance == pytest.approx(4, rel=0.2)
    assert abs((statistics.percentile(card, tensors, new) > 90).mean() - 0.1) < 0.05


def test_wide_activations_are_sketched() -> None:
    card, tensors = statistics.fit(activations(300, 200), activations(100, 200, seed=1), SITE)
    assert tensors["statistics.components"].shape == (64, 200)
    statistics.check(card, tensors, 200)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_constant_activations_are_no_division_by_zero(value: float) -> None:
    same = np.full((100, 8), value, dtype=np.float32)
    card, tensors = statistics.fit(same, same, SITE)
    assert statistics.percentile(card, tensors, same + 1).tolist() == [100 * 100 / 101] * 100


def test_what_does_not_fit_together_is_named() -> None:
    card, tensors = statistics.fit(activations(100, 8), activations(100, 8, seed=1), SITE)
    statistics.check(card, tensors, 8)
    flaws = (
        (card, {**tensors, "statistics.mean": tensors["statistics.mean"][1:]}),
        (card, {name: tensor for name, tensor in tensors.items() if name != "statistics.variances"}),
        (card, {**tensors, "statistics.variances": -tensors["statistics.variances"]}),
        (card.model_copy(update={"site": Site(layer=1, position=None)}), tensors),
        (card.model_copy(update={"quantiles": card.quantiles[::-1]}), tensors),
    )
    for about, beside in flaws:
        with pytest.raises(ProbeError, match="statistics"):
            statistics.check(about, beside, 8)
