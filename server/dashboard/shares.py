"""Shares with their intervals."""

from dataclasses import dataclass

import numpy as np

Z = 1.959964
"""95% of a normal distribution lie within so many standard deviations of its mean."""


@dataclass(frozen=True)
class Share:
    """A share among n, and its 95% interval."""

    accuracy: float | None
    """None where n is 0."""
    low: float | None
    high: float | None
    n: int


def share(right: float, n: int) -> Share:
    """Wilson's interval.

    Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22, 1927.
    """
    if n <= 0:
        return Share(None, None, None, 0)
    p = min(max(right / n, 0.0), 1.0)
    scale = 1 + Z**2 / n
    middle = (p + Z**2 / (2 * n)) / scale
    half = Z / scale * float(np.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)))
    return Share(p, max(0.0, middle - half), min(1.0, middle + half), n)
