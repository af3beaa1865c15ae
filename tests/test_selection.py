"""Candidates are ranked as one at a time would be, and calibration sees outputs that chose nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from probes.base import FloatArray, ProbeError
from probes.card import Task
from probes.measures import auroc, spearman
from probes.selection import FOLDS, choose, scores


def one_by_one(raw: FloatArray, labels: FloatArray, task: Task, seed: int) -> tuple[int, FloatArray]:
    """`choose`, written plainly."""
    score = spearman if task == "regression" else auroc

    def best(rows: np.ndarray) -> int:
        return int(np.nanargmax([round(score(one[rows], labels[rows]), 12) for one in raw]))

    everything = np.arange(len(labels))
    held_out = raw[best(everything)].copy()
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(labels)), FOLDS):
        others = np.setdiff1d(everything, fold)
        if np.ptp(labels[others]) > 0:
            held_out[fold] = raw[best(others), fold]
    return best(everything), held_out


@pytest.mark.parametrize("task", ["regression", "classification"])
@given(seed=st.integers(0, 10_000), k=st.sampled_from([1, 5, 8]), digits=st.sampled_from([0, 1, 8]))
def test_choosing_agrees_with_one_candidate_at_a_time(task: Task, seed: int, k: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    raw = np.round(rng.normal(size=(12, 40)), digits)  # with few digits, there are ties
    raw[0] = 1.0
    labels = rng.binomial(k, 0.5, size=40) / k
    choice = choose(raw, labels, task, seed)
    best, held_out = one_by_one(raw, labels, task, seed)
    assert choice.best == best
    np.testing.assert_array_equal(choice.held_out, held_out)
    single = [(spearman if task == "regression" else auroc)(one, labels) for one in raw]
    np.testing.assert_allclose(scores(raw, labels, task), single, atol=1e-11)


def test_scores_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    raw, labels = np.round(rng.normal(size=(5, 60)), 1), rng.integers(0, 2, size=60).astype(float)
    np.testing.assert_allclose(scores(raw, labels, "classification"), [roc_auc_score(labels, one) for one in raw])


def test_equal_rankings_are_equal() -> None:
    rng = np.random.default_rng(0)
    raw, labels = rng.normal(size=200), rng.binomial(5, 0.5, size=200) / 5
    for task in ("regression", "classification"):
        found = scores(np.stack([raw, np.exp(raw), raw * 1e-7]), labels, task)  # type: ignore[arg-type]  # a plain str
        assert found[0] == found[1] == found[2]
        assert choose(np.stack([np.zeros(200), raw, raw * 3]), labels, task).best == 1  # type: ignore[arg-type]  # a plain str


def test_what_cannot_be_ranked_is_refused() -> None:
    labels = np.array([0.0, 1.0, 1.0])
    with pytest.raises(ProbeError, match="constant"):
        choose(np.zeros((2, 3)), labels, "regression")
    with pytest.raises(ProbeError, match="not finite"):
        choose(np.array([[0.0, np.nan, 1.0]]), labels, "regression")


def test_one_standard_error_buys_no_depth_for_nothing() -> None:
    """Layer 1 knows all that layer 3 does, up to noise; layer 0 knows nothing."""
    rng = np.random.default_rng(0)
    knows = rng.normal(size=300)
    labels = (knows + rng.normal(size=300) > 0).astype(float)
    noise = rng.normal(size=(3, 300)) * [[1.0], [0.5], [2.0]]
    raw = np.stack([noise[0], knows + noise[1], knows, knows + noise[2]])
    layers = [0, 1, 3, 2]
    assert choose(raw, labels, "classification").best == 2
    choice = choose(raw, labels, "classification", layers=layers, layer_rule="one-se")
    assert choice.best == 1
    np.testing.assert_array_equal(choice.held_out, raw[1])
