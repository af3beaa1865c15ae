"""Fits one calibrated probe per arm on activations, and measures it beside what text alone tells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from offline import text_baselines
from offline.activations import Harvest
from offline.evaluate import DataError
from offline.metrics import measure
from offline.training_set import SPLITS, TrainingSet
from probes import calibration
from probes.base import FitResult, FloatArray
from probes.card import Calibration, Label, Metrics
from probes.linear_eoi import LinearEoi, Split


@dataclass(frozen=True)
class Fitted:
    """One arm's probe, and how it does on the test split."""

    probe: LinearEoi
    choice: FitResult
    calibration: Calibration
    metrics: Metrics
    test_score: float
    """On test, what `choice.score` is on validation: Spearman's correlation or AUROC with the label."""
    baselines: dict[str, Metrics]

    @property
    def beats_length(self) -> bool:
        """Whether the probe surely knows more than the length of the prompt."""
        return self.metrics.auroc.low > self.baselines["length"].auroc.value


def fit_arms(
    data: TrainingSet, harvest: Harvest, label: Label, on_layer: Callable[[], None] = lambda: None
) -> list[tuple[LinearEoi, FitResult]]:
    """A probe per arm: fitted on train; layer, position and alpha chosen on validation.

    Raises:
        DataError: an arm's label is the same on all problems of a split.
    """
    labels = _labels(data, label)
    for name in SPLITS:
        for arm, column in zip(data.arms, labels[data.rows(name)].T, strict=True):
            if np.ptp(column) == 0:
                raise DataError(
                    f"the {label} of arm {arm.name!r} is {column[0]:g} on every {name} problem, so there is nothing to "
                    f"{'measure' if name == 'test' else 'learn'}: sample more or other problems, or give the arm a "
                    "success_probability instead of a probe"
                )
    train, validation = (Split(harvest.values[rows], labels[rows]) for rows in map(data.rows, SPLITS[:2]))
    task: Literal["regression", "classification"] = "regression" if label == "success_rate" else "classification"
    return LinearEoi.fit(train, validation, harvest.layers, harvest.positions, task, on_layer=on_layer)


def calibrate_and_measure(
    data: TrainingSet,
    arm: int,
    harvest: Harvest,
    probe: LinearEoi,
    choice: FitResult,
    label: Label,
    prompt_tokens: Sequence[int],
    seed: int,
) -> Fitted:
    """Platt on validation, whatever the label was fitted on: towards P(one sample is correct). Metrics on test."""
    train, validation, test = map(data.rows, SPLITS)
    success_rate = data.success_rate[:, arm]
    raw = probe.raw(harvest.at(choice.site))
    platt = calibration.fit_platt(raw[validation], success_rate[validation])

    def on_test(p: FloatArray) -> Metrics:
        return measure(p[test], success_rate[test], "test", seed)

    score = calibration.spearman if label == "success_rate" else calibration.auroc
    lengths = np.asarray(prompt_tokens, dtype=np.float64)
    return Fitted(
        probe=probe,
        choice=choice,
        calibration=platt,
        metrics=on_test(calibration.apply(platt, raw)),
        test_score=score(raw[test], _labels(data, label)[test, arm]),
        baselines={
            "length": on_test(text_baselines.length(lengths, success_rate, validation)),
            "tfidf": on_test(text_baselines.tfidf(data.problems, success_rate, train, validation)),
        },
    )


def _labels(data: TrainingSet, label: Label) -> FloatArray:
    """What a probe is fitted to, (n, arms). A success rate stands for its single samples too."""
    return data.majority_vote_is_correct if label == "majority_vote_is_correct" else data.success_rate
