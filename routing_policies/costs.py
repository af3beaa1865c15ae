"""What an answer costs. Prices are USD per million tokens, everything else is USD per answer."""

import numpy as np
from numpy.typing import ArrayLike

from routing_policies.base import FloatArray

PER_MILLION = 1e-6


def tier_cost(
    mean_input_tokens: ArrayLike, mean_output_tokens: ArrayLike, input_price: ArrayLike, output_price: ArrayLike
) -> FloatArray:
    """Mean USD of one answer of each arm, input included: four times (k,) -> (k,)."""
    tokens_in, tokens_out = _floats(mean_input_tokens), _floats(mean_output_tokens)
    return PER_MILLION * (tokens_in * _floats(input_price) + tokens_out * _floats(output_price))


def normalise(tier: ArrayLike) -> FloatArray:
    """Tier costs min-max scaled to [0, 1] over the pool, (k,) -> (k,); zeros where all cost the same."""
    costs = _floats(tier)
    spread = costs.max() - costs.min()
    return (costs - costs.min()) / spread if spread > 0 else np.zeros_like(costs)


def expected_cost(
    input_tokens: ArrayLike, output_tokens: ArrayLike, input_price: ArrayLike, output_price: ArrayLike
) -> FloatArray:
    """USD to expect for the answer of each arm to each prompt, known input tokens charged as they are.

    Args:
        input_tokens: (n,) where all arms count alike, or (n, k).
        output_tokens: means, (k,), or expected of each prompt, (n, k).
        input_price: (k,).
        output_price: (k,).

    Returns:
        (n, k).
    """
    tokens_in = _floats(input_tokens)
    if tokens_in.ndim == 1:
        tokens_in = tokens_in[:, None]  # (n, 1)
    return PER_MILLION * (tokens_in * _floats(input_price) + _floats(output_tokens) * _floats(output_price))


def _floats(values: ArrayLike) -> FloatArray:
    return np.asarray(values, dtype=np.float64)
