"""The output-token head: expected tokens from activations, or nothing where the mean knows as much."""

import numpy as np
import pytest

from probes import output_tokens
from probes.base import FloatArray, ProbeError
from probes.card import Site
from probes.output_tokens import Lengths

SITE = Site(layer=1, position=-1)
D = 16


def lengths(n: int, seed: int, signal: float = 0.5, noise: float = 0.3) -> Lengths:
    """Log-normal lengths that one direction of the activations tells of."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, D)).astype(np.float32)
    return Lengths(x, np.exp(5 + signal * x[:, 0] + noise * rng.normal(size=n)))


def test_expected_tokens_are_unbiased_and_vary_with_the_prompt() -> None:
    fitted = output_tokens.fit(lengths(3000, 0), lengths(500, 1), lengths(2000, 2), SITE)
    assert fitted is not None
    head, tensors = fitted
    others = lengths(4000, 3)
    predicted = output_tokens.predict([(head, tensors)], others.activations)[:, 0]
    # A head without the smearing factor would be exp(.3 ** 2 / 2), 5%, too low.
    assert predicted.mean() == pytest.approx(others.tokens.mean(), rel=0.03)
    assert head.log_rmse == pytest.approx(0.3, abs=0.02)
    assert head.log_rmse_of_mean == pytest.approx(np.hypot(0.5, 0.3), abs=0.03)
    assert np.corrcoef(np.log(predicted), np.log(others.tokens))[0, 1] > 0.8


def test_far_activations_stay_near_the_training_range() -> None:
    train = lengths(500, 0)
    fitted = output_tokens.fit(train, lengths(200, 1), lengths(200, 2), SITE)
    assert fitted is not None
    far = np.array([[1e6] * D, [-1e6] * D], dtype=np.float32)
    tokens: FloatArray = output_tokens.predict([fitted], far)
    assert tokens.min() >= train.tokens.min() / output_tokens.MARGIN
    assert tokens.max() <= train.tokens.max() * output_tokens.MARGIN


def test_no_head_where_activations_tell_nothing() -> None:
    def noise(n: int, seed: int) -> Lengths:
        return Lengths(lengths(n, seed).activations, lengths(n, seed + 50).tokens)

    assert output_tokens.fit(noise(60, 0), noise(400, 1), noise(100, 2), SITE, alphas=(1.0,)) is None


def test_a_tensor_of_the_wrong_size_is_named() -> None:
    fitted = output_tokens.fit(lengths(300, 0), lengths(100, 1), lengths(100, 2), SITE)
    assert fitted is not None
    output_tokens.check(*fitted, D)
    with pytest.raises(ProbeError, match=r"output_tokens\.weight has shape \(16,\), where d_model = 96"):
        output_tokens.check(*fitted, 96)
    with pytest.raises(ProbeError, match=r"output_tokens\.weight has shape None"):
        output_tokens.check(fitted[0], {}, D)
