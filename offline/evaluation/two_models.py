"""APGR and CPT: how routing between a weak and a strong model is measured.

Source: Ong et al., "RouteLLM: learning to route LLMs with preference data", 2024, section 2.2: performance gap
recovered PGR(r) = (accuracy of r - weak) / (strong - weak); APGR = its mean over shares of calls to the strong model
from 0 to 1; CPT(x) = the least share of calls to the strong model at which PGR reaches x.
"""

import numpy as np

from routing_policies.base import FloatArray

ROUNDING = 1e-9
SHARES = np.linspace(0, 1, 101)


def recovered(strong_share: FloatArray, accuracy: FloatArray, weak: FloatArray, strong: FloatArray) -> FloatArray:
    """PGR at each of `SHARES`, on straight lines between settings: (draws, settings) twice, (draws,) twice
    -> (draws, shares). NaN where the strong model is no better than the weak one.

    Never and always asking the strong model are settings too.
    """
    curves = np.empty((len(accuracy), len(SHARES)))
    for row, share, reached, low, high in zip(curves, strong_share, accuracy, weak, strong, strict=True):
        share, reached = np.concatenate([[0.0], share, [1.0]]), np.concatenate([[low], reached, [high]])
        order = np.argsort(share, kind="stable")
        row[:] = np.interp(SHARES, share[order], reached[order])
    gap = (strong - weak)[:, None]
    pgr: FloatArray = np.divide(curves - weak[:, None], gap, out=np.full_like(curves, np.nan), where=gap > 0)
    return pgr


def apgr(pgr: FloatArray) -> FloatArray:
    """Average performance gap recovered, (draws, shares) -> (draws,); .5 is what random routing has."""
    area: FloatArray = ((pgr[:, 1:] + pgr[:, :-1]) / 2) @ np.diff(SHARES)
    return area


def cpt(pgr: FloatArray, level: float) -> float | None:
    """Call-performance threshold of one curve, (shares,): the least share that recovers `level` of the gap."""
    reaches = np.flatnonzero(pgr >= level - ROUNDING)
    if not len(reaches):
        return None
    place = reaches[0]
    return float(np.interp(level, pgr[place - 1 : place + 1], SHARES[place - 1 : place + 1]) if place else 0.0)
