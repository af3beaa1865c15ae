"""Choosing among fitted candidates on validation problems, and what is left to calibrate on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from probes.base import FloatArray, ProbeError
from probes.card import Task
from probes.measures import ranks

FOLDS = 5
DRAWS = 200
"""Of the bootstrap that tells a score's standard error."""

LayerRule = Literal["best", "one-se"]
"""Which layer is chosen: that of the best candidate, or the shallowest of those within one standard error of it."""


@dataclass(frozen=True)
class Choice:
    best: int
    """Index of the candidate."""
    score: float
    """Its Spearman correlation (regression) or AUROC (classification) on all validation problems."""
    held_out: FloatArray
    """(n,): outputs for each fold's problems by the candidate that does best on the other folds."""


def choose(
    raw: ArrayLike,
    labels: FloatArray,
    task: Task,
    seed: int = 0,
    *,
    layers: Sequence[int] = (),
    layer_rule: LayerRule = "best",
) -> Choice:
    """The candidate that ranks the validation problems best: (candidates, n), (n,). Of equals the first wins.

    Were calibration fitted on the outputs of the winner, it would be fitted on what chose the winner. So the choice is
    made again without each fold, and the fold's outputs are those of the candidate chosen there (cross-fitting).

    Args:
        layers: the deepest that each candidate reads, (candidates,); needed by the rule one-se, which takes the best
            candidate of the shallowest layer that has one within one standard error of the best of all (Breiman et
            al., Classification and Regression Trees, 1984, section 3.4.3).

    Raises:
        ProbeError: no candidate ranks the problems at all, or an output is not finite.
    """
    outputs = np.asarray(raw, dtype=np.float64)
    order = _order(outputs)
    all_scores, distinct = _scores(outputs, order, labels, task)
    best = first_best(all_scores)
    tolerance = None if layer_rule == "best" else _standard_error(outputs[best], labels, task, seed)

    def chosen(found: FloatArray) -> int:
        return first_best(found) if tolerance is None else _shallowest(found, np.asarray(layers), tolerance)

    best = chosen(all_scores)
    n = len(labels)
    held_out = outputs[best].copy()
    folds = np.array_split(np.random.default_rng(seed).permutation(n), min(FOLDS, n))
    for fold in folds if len(outputs) > 1 else []:
        kept = np.ones(n, dtype=bool)
        kept[fold] = False
        if np.ptp(labels[kept]) > 0:
            # What is sorted stays sorted when problems are left out, so one sort serves all folds.
            others = order[kept[order]].reshape(len(outputs), -1)
            fold_scores, _ = _scores(outputs, others, labels, task, distinct)
            held_out[fold] = outputs[chosen(fold_scores), fold]
    return Choice(best, float(all_scores[best]), held_out)


def _shallowest(found: FloatArray, layers: NDArray[np.int64], tolerance: float) -> int:
    """The best candidate of the shallowest layer that has one nearly as good as the best of all."""
    near = found >= found[first_best(found)] - tolerance
    return first_best(np.where(layers == layers[near].min(), found, np.nan))


def _standard_error(outputs: FloatArray, labels: FloatArray, task: Task, seed: int) -> float:
    """Of one candidate's score, by the bootstrap over problems."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(len(labels), size=(DRAWS, len(labels)))
    found = [scores(outputs[rows][None], labels[rows], task)[0] for rows in draws]
    return float(np.nanstd(found))


def scores(raw: ArrayLike, labels: FloatArray, task: Task) -> FloatArray:
    """How well each candidate ranks the problems, as `measures.spearman` or `auroc` say: (candidates, n), (n,).

    Rounded to 12 decimals, so that equal rankings are equal whatever the order of summation; NaN where undefined.

    Raises:
        ProbeError: an output is not finite.
    """
    outputs = np.asarray(raw, dtype=np.float64)
    return _scores(outputs, _order(outputs), labels, task)[0]


def first_best(found: FloatArray) -> int:
    """The first of the highest scores.

    Raises:
        ProbeError: no score is defined.
    """
    if np.isnan(found).all():
        raise ProbeError("no site ranks the validation split at all: its labels or the activations are constant")
    return int(np.nanargmax(found))


def _order(outputs: FloatArray) -> NDArray[np.int64]:
    """Problems by output, each candidate's: (candidates, n)."""
    if not np.isfinite(outputs).all():
        raise ProbeError(
            "a probe's outputs are not finite: activations or labels are not; harvest them anew, in float32"
        )
    return np.argsort(outputs, axis=1)


def _scores(
    outputs: FloatArray, order: NDArray[np.int64], labels: FloatArray, task: Task, distinct: bool = False
) -> tuple[FloatArray, bool]:
    """Scores on the problems in `order`, (candidates, problems), which is ascending by output; whether none are equal.

    Args:
        distinct: it is known that no candidate's outputs are equal.
    """
    ties = None if distinct else _ties(np.take_along_axis(outputs, order, axis=1))
    found = (_spearman if task == "regression" else _auroc)(ties, labels, order)
    rounded: FloatArray = np.round(found, 12)
    return rounded, ties is None


Ties = tuple[NDArray[np.int64], NDArray[np.int64]]


def _ties(values: FloatArray) -> Ties | None:
    """Where each sorted value's group of equals begins, and where it ends (inclusive): both (candidates, n).

    None where no values are equal.
    """
    n = values.shape[1]
    place = np.broadcast_to(np.arange(n), values.shape)
    new = np.ones(values.shape, dtype=bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=new[:, 1:])
    if new.all():
        return None
    first = np.maximum.accumulate(np.where(new, place, 0), axis=1)
    ends = np.concatenate([new[:, 1:], np.ones((len(values), 1), dtype=bool)], axis=1)
    last = np.minimum.accumulate(np.where(ends, place, n)[:, ::-1], axis=1)[:, ::-1]
    return first, last


def _spearman(ties: Ties | None, labels: FloatArray, order: NDArray[np.int64]) -> FloatArray:
    # Every candidate ranks the same problems, so one ranking of the labels serves all.
    problems = np.sort(order[0])
    target = np.zeros(len(labels))
    target[problems] = ranks(labels[problems])
    target[problems] -= target[problems].mean()
    if ties is None:
        rank = np.arange(len(problems)) - (len(problems) - 1) / 2
        norm = np.sqrt((rank @ rank) * (target @ target))
        even: FloatArray = (target[order] @ rank) / (norm if norm > 0 else np.nan)
        return even
    rank = (ties[0] + ties[1]) / 2
    rank -= rank.mean(axis=1, keepdims=True)
    norm = np.sqrt((rank**2).sum(axis=1) * (target @ target))
    found: FloatArray = (rank * target[order]).sum(axis=1) / np.where(norm > 0, norm, np.nan)
    return found


def _auroc(ties: Ties | None, labels: FloatArray, order: NDArray[np.int64]) -> FloatArray:
    correct = labels[order]
    wrong = 1.0 - correct
    wrong_up_to = np.cumsum(wrong, axis=1)
    total = correct.sum(axis=1) * wrong_up_to[:, -1]
    if ties is None:
        pairs = np.einsum("cn,cn->c", correct, wrong_up_to - wrong / 2)
        apart: FloatArray = pairs / np.where(total > 0, total, np.nan)
        return apart
    first, last = ties
    at_end = np.take_along_axis(wrong_up_to, last, axis=1)
    before = np.where(first > 0, np.take_along_axis(wrong_up_to, np.maximum(first - 1, 0), axis=1), 0.0)
    found: FloatArray = (correct * (before + at_end) / 2).sum(axis=1) / np.where(total > 0, total, np.nan)
    return found
