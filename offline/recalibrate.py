"""A probe's calibration corrected by what came of its decisions: the arithmetic of `pika probes calibrate --ledger`.

A ledger holds the probabilities that were given and what came of them, not the probe's raw outputs. So the correction
is fitted on the logits of those probabilities, and then put behind the old calibration as one step from raw outputs.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offline.evaluate import DataError
from offline.evaluation.bootstrap import ROUNDING, Interval
from offline.metrics import measure
from probes import calibration
from probes.base import FloatArray, ProbeError
from probes.calibration import Method
from probes.card import Calibration, Metrics
from probes.logistic import sigmoid
from routing_policies.off_policy import worth

METHODS: tuple[Method, ...] = ("temperature", "platt", "isotonic")
"""Of correcting a logit; it is no probability itself."""
LOGISTIC = ("temperature", "platt")
FIT_SHARE = 2 / 3
"""The earlier outcomes; the later ones check."""
LEAST = 150
"""Outcomes, each at its worth (`worth`), for both parts together: fewer say nothing of probabilities."""
SUREST = 1e-6
"""No probability is taken for nearer to 0 or 1, so that each has a logit."""
GRID = 257
"""Knots of a correction that is no straight line over logits: more change no probability by 0.001."""
RESAMPLES = 1000
HELD_BACK = "outcomes"
"""Begins the name of their split in a card."""
EARLIER_SPLIT = ", earlier calibration"
"""Ends the names of splits that an earlier calibration was measured on."""


@dataclass(frozen=True)
class Observed:
    """What came of an arm's decisions, oldest first, each field (n,)."""

    p: FloatArray
    """Success probabilities as they were given."""
    correct: FloatArray
    """0 to 1."""
    propensity: FloatArray
    """Probability with which the arm was chosen, in (0, 1]."""


@dataclass(frozen=True)
class Correction:
    """A correction that was fitted on earlier outcomes, checked on later ones."""

    calibration: Calibration
    fitted_on: int
    before: Metrics
    """On the outcomes held back, by the old calibration."""
    after: Metrics
    gain: Interval
    """By how much it lowers the log loss of the outcomes held back, nats; paired by outcome."""

    @property
    def better(self) -> bool:
        """Surely: at the interval's lower end."""
        return self.gain.low > 0


def correct_calibration(old: Calibration, seen: Observed, seed: int) -> Correction:
    """Fit a correction on the earlier outcomes and check it on the later ones.

    An arm's outcomes come from the prompts that routing sent to it, which need not be like all prompts. Each is
    therefore weighed by one over the probability with which the arm was chosen (Horvitz and Thompson, 1952): draws in
    proportion to these weights, as many as the outcomes are worth, stand for all prompts.

    Raises:
        DataError: there are too few outcomes, or all are alike.
        ProbeError: by these outcomes success falls as the probability rises.
    """
    weight = 1 / seen.propensity
    cut = round(len(weight) * FIT_SHARE)
    worth_of = worth(weight[:cut]) + worth(weight[cut:])
    if worth_of < LEAST:
        count = len(weight)
        wanted = f"about {int(np.ceil(count * (LEAST / worth_of - 1)))} more" if count else f"{LEAST}"
        raise DataError(
            f"{count} outcomes, worth {worth_of:.0f} where some stand for many (audited ones do), are too few: "
            f"at least {LEAST} are needed, {wanted}"
        )
    fit_rows = drawn(weight[:cut], seed)
    check_rows = cut + drawn(weight[cut:], seed)
    for rows, which in ((fit_rows, "earlier"), (check_rows, "later")):
        if np.ptp(seen.correct[rows]) == 0:
            raise DataError(f"all {which} outcomes are {seen.correct[rows[0]]:g}, which tells nothing: collect others")
    logit = logits(seen.p)
    # Steps over raw outputs that fall as the probability rises cannot be written down.
    methods = METHODS[:2] if old.method in LOGISTIC and old.scale <= 0 else METHODS
    fitted = calibration.choose(logit[fit_rows], seen.correct[fit_rows], seed, methods)
    ends = calibration.apply(fitted, np.array([logit[fit_rows].min(), logit[fit_rows].max()]))
    if ends[1] <= ends[0]:
        raise ProbeError(
            "by these outcomes success does not become likelier as the probability rises: recalibrating cannot mend "
            "that; look whether the outcomes are right, or train the probe anew"
        )
    rate = seen.correct[check_rows]
    before, after = seen.p[check_rows], calibration.apply(fitted, logit[check_rows])
    split = f"{HELD_BACK} held back"
    lost = calibration.log_loss(before, rate) - calibration.log_loss(after, rate)
    return Correction(
        calibration=composed(old, fitted),
        fitted_on=len(fit_rows),
        before=measure(before, rate, split, seed),
        after=measure(after, rate, split, seed),
        gain=_mean(lost, seed),
    )


def drawn(weight: FloatArray, seed: int) -> NDArray[np.int64]:
    """Rows in proportion to their weights, as many as they are worth (equal ones: all), by systematic sampling."""
    count = max(1, round(worth(weight)))
    at = (np.arange(count) + np.random.default_rng(seed).random()) * (weight.sum() / count)
    rows: NDArray[np.int64] = np.searchsorted(np.cumsum(weight), at, side="right").clip(max=len(weight) - 1)
    return rows


def logits(p: FloatArray) -> FloatArray:
    """(n,) -> (n,), finite."""
    kept = np.clip(p, SUREST, 1 - SUREST)
    odds: FloatArray = np.log(kept) - np.log1p(-kept)
    return odds


def composed(old: Calibration, correction: Calibration) -> Calibration:
    """`correction`, of the logit of what `old` gives, as one calibration of raw outputs.

    Exact where `old` is a logistic curve; else linear between close knots.
    """
    if old.method in LOGISTIC and correction.method in LOGISTIC:
        scale, bias = correction.scale * old.scale, correction.scale * old.bias + correction.bias
        return Calibration(method="platt", scale=scale, bias=bias, of="success")
    if old.method in LOGISTIC:
        raw = (np.array([at for at, _ in correction.knots]) - old.bias) / old.scale
    else:
        knots = old.knots if old.method == "isotonic" else [(0.0, 0.0), (1.0, 1.0)]
        x, y = np.array(knots).T
        low, high = logits(np.array([0.0, 1.0])).tolist()
        grid = np.union1d(np.linspace(low, high, GRID), [at for at, _ in correction.knots])
        raw = np.union1d(x, np.interp(sigmoid(grid), y, x))
    p = calibration.apply(correction, logits(calibration.apply(old, raw)))
    # Rounding lets none fall.
    p = np.clip(np.maximum.accumulate(p), 0, 1)
    return Calibration(method="isotonic", knots=list(zip(raw.tolist(), p.tolist(), strict=True)), of="success")


def _mean(values: FloatArray, seed: int) -> Interval:
    """With its 95% interval by resampling. Percentile method."""
    rng = np.random.default_rng(seed)
    n = len(values)
    means = np.array([values[rng.integers(n, size=n)].mean() for _ in range(RESAMPLES)])
    low, high = np.quantile(means, [0.025, 0.975]).tolist()
    value = float(values.mean())
    return Interval(0.0 if abs(value) < ROUNDING else value, low, high)
