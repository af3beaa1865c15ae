"""Fits one calibrated probe per arm, with what travels beside it, and measures it beside what text alone tells."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offline.evaluate import DataError
from offline.material import Material
from offline.metrics import measure
from offline.training_set import SPLITS, TrainingSet
from probes import calibration, output_tokens, statistics
from probes.base import Examples, Fit, FloatArray, Inputs, Probe, ProbeError, load
from probes.card import Calibration, Label, Metrics, OutputTokens, Site, Statistics, Task
from probes.linear_eoi import LinearEoi
from probes.measures import auroc, brier, spearman
from probes.output_tokens import Lengths
from probes.selection import LayerRule
from probes.token_readout import TokenReadout

BASELINES = ("length", "tfidf")
"""Probes that read text alone: what every other one is compared with."""


@dataclass(frozen=True)
class Fitted:
    """One arm's probe, and how it does on the test split."""

    fit: Fit
    calibration: Calibration
    metrics: Metrics
    test_score: float
    """On test, what `fit.score` is on validation: Spearman's correlation or AUROC with the label."""
    validation: dict[str, float]
    """Figures on the validation split, of outputs that chose nothing; what probes of any kind may be compared by."""
    baselines: dict[str, Metrics]
    output_tokens: OutputTokens | None
    statistics: Statistics | None
    beside: Mapping[str, NDArray[np.float32]]
    """Their tensors."""
    d_model: int | None
    """What the probe model's activations have; None: none are read."""


def task_of(label: Label) -> Task:
    return "regression" if label == "success_rate" else "classification"


def fit_arms(
    data: TrainingSet,
    inputs: Inputs,
    kind: type[Probe],
    label: Label,
    seed: int = 0,
    on_step: Callable[[float], None] = lambda share: None,
    layer_rule: LayerRule = "best",
) -> list[Fit]:
    """A probe per arm: fitted on train, chosen on validation.

    Args:
        layer_rule: see `probes.selection.choose`.

    Raises:
        ProbeError: this kind chooses among no layers, so that there is nothing for a rule to choose.
        DataError: an arm's label is the same on all problems of a split.
    """
    labels = _labels(data, label)
    constant = {
        arm.name: f"the {label} of arm {arm.name!r} is {column[0]:g} on every {name} problem, so there is nothing to "
        f"{'measure' if name == 'test' else 'learn'}"
        for name in reversed(SPLITS)
        for arm, column in zip(data.arms, labels[data.rows(name)].T, strict=True)
        if np.ptp(column) == 0
    }
    if constant:
        others = ",".join(arm.name for arm in data.arms if arm.name not in constant)
        raise DataError(
            f"{'; '.join(constant.values())}: sample more or other problems, or give the arm a success_probability "
            "instead of a probe" + (f" and train the others with --arms {others}" if others else "")
        )
    train, validation = (Examples(inputs.rows(rows), labels[rows]) for rows in map(data.rows, SPLITS[:2]))
    if layer_rule == "best":
        return kind.fit(train, validation, task_of(label), seed=seed, on_step=on_step)
    if not issubclass(kind, (LinearEoi, TokenReadout)):
        raise ProbeError(f"--layer-rule {layer_rule} is for kinds that read one layer of several, not for {kind.kind}")
    return kind.fit(train, validation, task_of(label), seed=seed, on_step=on_step, layer_rule=layer_rule)


def fit_baselines(data: TrainingSet, inputs: Inputs, seed: int = 0) -> dict[str, list[Fit]]:
    """What text alone tells of every arm's success rate, by kind of probe."""
    text = Inputs(inputs.texts, inputs.prompt_tokens)  # no rows of activations are copied that nobody reads
    return {name: fit_arms(data, text, load(name), "success_rate", seed) for name in BASELINES}


def finish(
    data: TrainingSet,
    arm: int,
    material: Material,
    fit: Fit,
    baselines: Mapping[str, list[Fit]],
    label: Label,
    seed: int = 0,
) -> Fitted:
    """Calibrate, add the output-token head and the activation statistics, and measure on test.

    Calibration is towards P(one sample is correct), whatever the label, on outputs that chose nothing (`Fit.held_out`).
    Statistics are left out where there are too few validation prompts for them.
    """
    inputs, looked_at = material.inputs, material.statistics_site
    test = data.rows("test")
    rate = data.success_rate[:, arm]

    def calibrated(one: Fit) -> tuple[Calibration, Metrics, FloatArray]:
        fitted = calibration.choose(one.held_out, rate[data.rows("validation")], seed)
        raw = one.probe.raw(_read_by(one.probe, inputs).rows(test))
        return fitted, measure(calibration.apply(fitted, raw), rate[test], "test", seed), raw

    fitted, metrics, raw = calibrated(fit)
    score = spearman if label == "success_rate" else auroc
    head: OutputTokens | None = None
    about: Statistics | None = None
    beside: dict[str, NDArray[np.float32]] = {}
    if fit.probe.site is not None and looked_at is not None:
        at = inputs.activations[looked_at]
        validation = data.rows("validation")
        if validation.sum() >= statistics.LEAST_HELD_OUT:
            about, beside = statistics.fit(at[data.rows("train")], at[validation], looked_at)
        head, weight = _output_tokens(data, arm, inputs, last_token(fit.probe.site))
        beside |= weight
    return Fitted(
        fit=fit,
        calibration=fitted,
        metrics=metrics,
        test_score=score(raw, _labels(data, label)[test, arm]),
        validation=_on_validation(fit.held_out, fitted, rate[data.rows("validation")]),
        baselines={name: calibrated(fits[arm])[1] for name, fits in baselines.items()},
        output_tokens=head,
        statistics=about,
        beside=beside,
        d_model=None if fit.probe.site is None or looked_at is None else inputs.activations[looked_at].shape[1],
    )


def _on_validation(raw: FloatArray, fitted: Calibration, rate: FloatArray) -> dict[str, float]:
    return {"auroc": auroc(raw, rate), "brier": brier(calibration.apply(fitted, raw), rate)}


def _output_tokens(
    data: TrainingSet, arm: int, inputs: Inputs, site: Site
) -> tuple[OutputTokens | None, dict[str, NDArray[np.float32]]]:
    """The output-token head and its tensor; none where it knows no more than the mean."""
    train, validation, test = (
        Lengths(inputs.activations[site][rows], data.output_tokens[rows, arm]) for rows in map(data.rows, SPLITS)
    )
    return output_tokens.fit(train, validation, test, site) or (None, {})


def _read_by(probe: Probe, inputs: Inputs) -> Inputs:
    """The inputs without the sites and layers that this probe does not read, so that nobody copies their rows."""
    layers = [site.layer for site in probe.sites]
    return replace(
        inputs,
        activations={site: values for site, values in inputs.activations.items() if site in probe.sites},
        sequences={layer: values for layer, values in inputs.sequences.items() if layer in layers},
    )


def last_token(site: Site) -> Site:
    """The same site, or the last token's where all tokens are read."""
    return site if site.position is not None else Site(layer=site.layer, position=-1)


def _labels(data: TrainingSet, label: Label) -> FloatArray:
    """What a probe is fitted to, (n, arms). A success rate stands for its single samples too."""
    return data.majority_vote_is_correct if label == "majority_vote_is_correct" else data.success_rate
