"""Isotonic regression by pooling adjacent violators. NumPy alone.

Source: Ayer et al., "An empirical distribution function for sampling with incomplete information", 1955.
"""

import numpy as np

from probes.base import FloatArray


def fit_isotonic(x: FloatArray, y: FloatArray) -> FloatArray:
    """The rising step function with the least squared error, as the knots that linear interpolation needs.

    Args:
        x: (n,), in any order. Equal ones count as one, at their mean y.
        y: (n,)

    Returns:
        Knots (x, y), (knots, 2): the first and the last x of each level; x rises, y never falls.
    """
    values, group = np.unique(x, return_inverse=True)
    weight = np.bincount(group).astype(np.float64)
    mean = np.bincount(group, y) / weight
    levels: list[tuple[float, float, int]] = []  # mean, weight, index of the last value
    for last, (level, mass) in enumerate(zip(mean.tolist(), weight.tolist(), strict=True)):
        while levels and levels[-1][0] >= level:
            before, before_mass, _ = levels.pop()
            level = (before * before_mass + level * mass) / (before_mass + mass)
            mass += before_mass
        levels.append((level, mass, last))
    knots: list[tuple[float, float]] = []
    first = 0
    for level, _, last in levels:
        knots += [(values[at], level) for at in sorted({first, last})]
        first = last + 1
    return np.array(knots)
