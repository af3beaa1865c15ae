"""Choosing among fitted candidates on validation problems, and what is left to calibrate on."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from probes import calibration
from probes.base import FloatArray, ProbeError
from probes.card import Task

FOLDS = 5


@dataclass(frozen=True)
class Choice:
    best: int
    """Index of the candidate."""
    score: float
    """Its Spearman correlation (regression) or AUROC (classification) on all validation problems."""
    held_out: FloatArray
    """(n,): outputs for each fold's problems by the candidate that does best on the other folds."""


def choose(raw: ArrayLike, labels: FloatArray, task: Task, seed: int = 0) -> Choice:
    """The candidate that ranks the validation problems best: (candidates, n), (n,). Of equals the first wins.

    Were calibration fitted on the outputs of the winner, it would be fitted on what chose the winner. So the choice is
    made again without each fold, and the fold's outputs are those of the candidate chosen there (cross-fitting).

    Raises:
        ProbeError: no candidate ranks the problems at all.
    """
    outputs = np.asarray(raw, dtype=np.float64)
    score = calibration.spearman if task == "regression" else calibration.auroc
    best, value = _best(outputs, labels, score)
    n = len(labels)
    held_out = outputs[best].copy()
    folds = np.array_split(np.random.default_rng(seed).permutation(n), min(FOLDS, n))
    for fold in folds if len(outputs) > 1 else []:
        others = np.setdiff1d(np.arange(n), fold, assume_unique=True)
        if np.ptp(labels[others]) > 0:
            held_out[fold] = outputs[_best(outputs[:, others], labels[others], score)[0], fold]
    return Choice(best, value, held_out)


def _best(
    outputs: FloatArray, labels: FloatArray, score: Callable[[FloatArray, FloatArray], float]
) -> tuple[int, float]:
    scores = np.array([score(one, labels) for one in outputs])
    if not np.isfinite(scores).any():
        raise ProbeError("no site ranks the validation split at all: its labels or the activations are constant")
    best = int(np.nanargmax(scores))
    return best, float(scores[best])
