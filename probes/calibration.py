"""From raw probe outputs to probabilities of success. NumPy alone, so that serving may import it.

Success rates may be shares of k samples or 0 and 1, as in `probes.measures`.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from probes.base import FloatArray, ProbeError
from probes.card import Calibration
from probes.isotonic import fit_isotonic
from probes.logistic import fit_logistic, sigmoid
from probes.parts import mean_and_deviation

Method = Literal["none", "temperature", "platt", "isotonic"]
SIMPLEST_FIRST: tuple[Method, ...] = ("none", "temperature", "platt", "isotonic")
FOLDS = 5
RIDGE = 1e-6
"""Keeps Platt's scale finite where labels are separable."""
SUREST = 1e-3
"""Log loss takes no probability for nearer to 0 or 1: isotonic's 0 and 1 would cost infinitely much."""


def apply(calibration: Calibration, raw: ArrayLike) -> FloatArray:
    """Raw outputs to probabilities, of the same shape."""
    values = np.asarray(raw, dtype=np.float64)
    if calibration.method == "none":
        return np.clip(values, 0.0, 1.0)
    if calibration.method == "isotonic":
        x, y = np.array(calibration.knots).T
        return np.asarray(np.interp(values, x, y))
    return sigmoid(calibration.scale * values + calibration.bias)


def fit(method: Method, raw: FloatArray, success_rate: FloatArray) -> Calibration:
    """One method's calibration: (n,), (n,) -> its parameters.

    Raises:
        ProbeError: there is nothing to fit on, or an output is not a finite number.
    """
    if not len(raw):
        raise ProbeError("calibration needs at least one problem")
    if not np.isfinite(raw).all():
        raise ProbeError("the probe's raw outputs are not all finite numbers: train it anew with `pika train`")
    if method == "isotonic":
        knots = np.clip(fit_isotonic(raw, success_rate), [-np.inf, 0.0], [np.inf, 1.0])
        return Calibration(method="isotonic", knots=[(x, y) for x, y in knots.tolist()])
    if method == "platt":
        return fit_platt(raw, success_rate)
    return fit_temperature(raw, success_rate) if method == "temperature" else Calibration(method="none")


def fit_platt(raw: FloatArray, success_rate: FloatArray) -> Calibration:
    """The logistic curve with the least cross-entropy to success rates: (n,), (n,) -> scale and bias.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999, with rates as targets.
    """
    mean, deviation = map(float, mean_and_deviation(raw))
    design = np.stack([(raw - mean) / deviation, np.ones_like(raw)], axis=1)  # (n, 2)
    scale, bias = fit_logistic(design, success_rate, RIDGE * len(raw), start=np.zeros(2)) / (deviation, 1.0)
    return Calibration(method="platt", scale=float(scale), bias=float(bias - scale * mean))


def fit_temperature(raw: FloatArray, success_rate: FloatArray) -> Calibration:
    """Platt's curve through one half at 0, for raw outputs that are logits: (n,), (n,) -> scale = 1 / temperature.

    Source: Guo et al., "On calibration of modern neural networks", 2017.
    """
    size = float(np.sqrt(np.mean(raw**2))) or 1.0
    scale = fit_logistic(raw[:, None] / size, success_rate, RIDGE * len(raw), start=np.zeros(1)) / size
    return Calibration(method="temperature", scale=float(scale[0]))


def choose(
    raw: FloatArray, success_rate: FloatArray, seed: int = 0, methods: tuple[Method, ...] = SIMPLEST_FIRST
) -> Calibration:
    """The method that predicts best what it was not fitted on, fitted on all: (n,), (n,).

    Judged by log loss, in which errors near 0 and 1 weigh most, as they do where a target is .95. Of methods within one
    standard error of the best, paired by problem, the simplest wins (Breiman et al., Classification and Regression
    Trees, 1984, section 3.4.3).

    Args:
        methods: the simplest first.

    Raises:
        ProbeError: see `fit`.
    """
    losses = np.stack([log_loss(held_out(method, raw, success_rate, seed), success_rate) for method in methods])
    excess = losses - losses[losses.mean(axis=1).argmin()]  # (methods, n)
    noise = excess.std(axis=1) / np.sqrt(excess.shape[1])
    simplest = int(np.argmax(excess.mean(axis=1) <= noise))
    return fit(methods[simplest], raw, success_rate)


def held_out(method: Method, raw: FloatArray, success_rate: FloatArray, seed: int = 0) -> FloatArray:
    """Probabilities of n problems, each by a calibration fitted without its fifth of them: (n,), (n,) -> (n,).

    Raises:
        ProbeError: see `fit`.
    """
    n = len(raw)
    p = np.empty(n)
    for fold in np.array_split(np.random.default_rng(seed).permutation(n), max(1, min(FOLDS, n))):
        others = np.setdiff1d(np.arange(n), fold, assume_unique=True) if n > 1 else fold
        p[fold] = apply(fit(method, raw[others], success_rate[others]), raw[fold])
    return p


def log_loss(p: FloatArray, success_rate: FloatArray) -> FloatArray:
    """Cross-entropy of each problem's samples, in nats, (n,)."""
    p = np.clip(p, SUREST, 1 - SUREST)
    loss: FloatArray = -success_rate * np.log(p) - (1 - success_rate) * np.log1p(-p)
    return loss
