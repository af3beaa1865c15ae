"""How often a policy would be right, from the outcomes of requests that another one routed.

Where routing was partly left to chance (`audit`, `canary`), every arm that could be drawn speaks for those requests too
that went elsewhere:

- *inverse propensity*: the outcomes of requests that went to the very arm which the policy chooses, each weighted by
  1 / the probability that it went there, and divided by the sum of the weights (self-normalised: Hajek, 1971;
  Swaminathan & Joachims, "The self-normalized estimator for counterfactual learning", NeurIPS 2015). It believes no
  probe.
- *doubly robust*: the mean success probability of the arms that the policy chooses, corrected by those outcomes'
  weighted distance from their own (Dudik, Langford & Li, "Doubly robust policy evaluation and learning", ICML 2011).
  Right where either the propensities or the probabilities are.

Both take it that whether there is an outcome does not depend on how right the answer was. Where outcomes cannot say,
there is no number, but a reason.
"""

from dataclasses import dataclass

import numpy as np

from routing_policies.base import BoolArray, FloatArray, IndexArray

Z = 1.959964
"""95% of a normal distribution lie within so many standard deviations of its mean."""
FEWEST_EFFECTIVE = 30
"""Below so many outcomes' worth of information no accuracy is told."""
MOST_UNSEEN = 0.1
"""Nor where a larger share of the requests would go where none like them could have gone."""


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95% interval over requests."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class FromOutcomes:
    """What outcomes say of a policy's accuracy."""

    outcomes: int
    """Requests with one."""
    matched: int
    """Of these, the ones that went to the arm which the policy chooses."""
    effective: float
    """How many equally weighted outcomes would tell as much."""
    unseen: float
    """Share of the requests with an outcome that the policy sends where none like them could have gone. The intervals
    leave open whether these were right."""
    inverse_propensity: Estimate | None
    doubly_robust: Estimate | None
    says: str
    """Why there is no number, and what helps; else empty."""


def from_outcomes(
    outcome: FloatArray, propensity: FloatArray, same: BoolArray, able: IndexArray, p: FloatArray
) -> FromOutcomes:
    """
    Args:
        outcome: how right each answer was, 0 to 1, NaN where nobody said, (n,).
        propensity: probability, given the request, with which it went where it went, (n,).
        same: whether the policy chooses that arm, (n,).
        able: how many arms could serve it, (n,).
        p: success probability of the arm that the policy chooses, (n,).
    """
    rows = np.flatnonzero(np.isfinite(outcome) & (propensity > 0))
    if not len(rows):
        return FromOutcomes(0, 0, 0.0, 0.0, None, None, "no outcomes: POST /v1/outcomes says which answers were right")
    mean_p, error_p = float(p.mean()), float(p.std()) / np.sqrt(len(p))
    y, drawn, same, q = outcome[rows], propensity[rows], same[rows], p[rows]
    # Where the arm was certain, and another one, nothing like this could have been seen.
    hidden = ~same & (drawn >= 1)
    weight = np.where(same, 1 / drawn, 0.0)
    effective = _effective(able[rows], drawn, same, hidden)
    unseen = _unseen(weight[~hidden], float(hidden.mean()), effective)
    says = ""
    if unseen > MOST_UNSEEN:
        says = (
            f"outcomes cannot say: {unseen:.0%} of the requests that have one would go where chance sent none like "
            "them; `audit: {share: 0.01}` in the configuration does from now on: replay the time since then"
        )
    elif effective < FEWEST_EFFECTIVE or not same.any():
        says = (
            f"too few outcomes: they tell as much as {effective:.0f} would of the arms chosen, and {FEWEST_EFFECTIVE} "
            "are needed; wait for more, or raise audit.share"
        )
    if says:
        return FromOutcomes(len(rows), int(same.sum()), effective, unseen, None, None, says)
    weight /= weight.sum()
    seen = 1 - unseen
    guessed = float(q[~same].mean()) if unseen > 0 and not same.all() else 0.0
    right = float(weight @ y)
    middle, half = _wilson(right, min(effective, _ratio(right * (1 - right), float(weight**2 @ (y - right) ** 2))))
    weighted = Estimate(
        seen * right + unseen * guessed,
        seen * share(middle - half),
        seen * share(middle + half) + unseen,
    )
    residual = y - q  # of the arm that answered, wherever the weight is not 0
    correction = float(weight @ residual)
    spread = max(float(weight**2 @ (residual - correction) ** 2), float(weight @ residual**2) / effective)
    margin = Z * (seen * np.sqrt(spread) + error_p)
    value = mean_p + seen * correction
    robust = Estimate(
        share(value),
        share(value - margin - unseen * guessed),
        share(value + margin + unseen * (1 - guessed)),
    )
    return FromOutcomes(len(rows), int(same.sum()), effective, unseen, weighted, robust, says)


def accuracy(outcome: FloatArray, propensity: FloatArray) -> Estimate | None:
    """How often one arm is right, of all requests that it could have been drawn for; from its own outcomes, by inverse
    propensity.

    Args:
        outcome: how right each of its answers was, 0 to 1, (n,).
        propensity: probability, given the request, with which it was drawn, (n,).

    Returns: with its interval; None where the outcomes tell too little.
    """
    weight = 1 / propensity
    effective = worth(weight)
    if effective < FEWEST_EFFECTIVE:
        return None
    weight /= weight.sum()
    right = share(float(weight @ outcome))
    spread = float(weight**2 @ (outcome - right) ** 2)
    middle, half = _wilson(right, min(effective, _ratio(right * (1 - right), spread)))
    return Estimate(right, share(middle - half), share(middle + half))


def worth(weight: FloatArray) -> float:
    """How many equally weighted outcomes tell as much: Kish's effective sample size, (n,) -> [0, n]."""
    return float(weight.sum() ** 2 / (weight**2).sum()) if len(weight) else 0.0


def _effective(able: IndexArray, drawn: FloatArray, same: BoolArray, hidden: BoolArray) -> float:
    """How many equally weighted outcomes tell as much: n^2 over the sum of 1 / propensity of the arm that the policy
    chooses (Kish, with the weights to be expected, for of the heavy ones few or none may have been drawn).

    Where another arm was drawn, and likely so, what it leaves is shared evenly by the others that could serve.

    Args:
        able: how many arms could serve, (n,).
    """
    other = ~same & ~hidden
    inverse = np.ones(len(drawn))
    inverse[same] = 1 / drawn[same]
    # Where the draw was unlikely, the policy's arm may be the likely one: it may have all that is left.
    others = np.where(drawn[other] > 0.5, np.maximum(able[other] - 1, 1), 1)
    inverse[other] = others / (1 - drawn[other])
    return float((~hidden).sum() ** 2 / inverse[~hidden].sum()) if not hidden.all() else 0.0


def _unseen(weight: FloatArray, hidden: float, effective: float) -> float:
    """Share of the requests that the policy sends where none like them could have gone.

    Args:
        weight: 1 / propensity where the policy's arm answered, else 0. Its mean is 1 where that arm can be drawn for
            every request; where it is surely less, some arms cannot (a canary draws between two policies' alone).
        hidden: what is known to be so.
    """
    if not len(weight):
        return 1.0
    mean = float(weight.mean())
    return 1 - (1 - hidden) * mean if mean + 3 / np.sqrt(effective) < 1 else hidden


def _wilson(share: float, n: float) -> tuple[float, float]:
    """Middle and half width of the 95% interval of a share among n (Wilson, JASA 22, 1927)."""
    scale = 1 + Z**2 / n
    middle = (share + Z**2 / (2 * n)) / scale
    half = Z / scale * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return middle, float(half)


def _ratio(above: float, below: float) -> float:
    return above / below if below > 0 else np.inf


def estimate(value: float, error: float) -> Estimate:
    """Of a share, by its standard error."""
    return Estimate(value, share(value - Z * error), share(value + Z * error))


def share(value: float) -> float:
    """Kept within [0, 1]."""
    return float(min(max(value, 0.0), 1.0))
