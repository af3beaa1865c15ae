"""A fitted scikit-learn model as what it computes: weight . activation + intercept."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from probes.allow_list import Model
from probes.base import FloatArray, ProbeError

MOST = float(np.finfo(np.float32).max)
REGRESSORS = ("Ridge", "LinearRegression")
CLASSIFIERS = ("LogisticRegression",)


@dataclass(frozen=True)
class LinearForm:
    weight: FloatArray
    """(d,)"""
    intercept: float
    classifies: bool
    """The form is then the log-odds of class 1 against class 0."""
    version: str
    """The scikit-learn that fitted it; empty where it was too old to say."""


def linear_form(model: Model) -> LinearForm:
    """Of a linear model, or of a pipeline of scalers that ends in one.

    Raises:
        ProbeError: it is another model, has several outputs, or values that no fitted model has.
    """
    if model.name != "Pipeline":
        return _estimator(model)
    steps = model.state.get("steps")
    models = [step[-1] for step in steps if isinstance(step, tuple) and step] if isinstance(steps, list) else []
    if not models or not all(isinstance(one, Model) for one in models):
        raise ProbeError("its pipeline has steps that are no fitted models")
    *scalers, last = models
    form = _estimator(last)
    for scaler in reversed(scalers):
        form = _before(scaler, form)
    return form


def _estimator(model: Model) -> LinearForm:
    if model.name not in REGRESSORS + CLASSIFIERS:
        raise ProbeError(f"a {model.name} is no linear model")
    weight = _numbers(model, "coef_")
    if weight.ndim > 2 or weight.shape[:-1] not in ((), (1,)):
        raise ProbeError(f"its coefficients have shape {weight.shape}: one output is needed, not several")
    intercept = _numbers(model, "intercept_")
    if intercept.size != 1:
        raise ProbeError(f"it has {intercept.size} intercepts: one output is needed, not several")
    classifies = model.name in CLASSIFIERS
    if classifies and _numbers(model, "classes_").tolist() != [0, 1]:
        raise ProbeError("its classes are not 0 and 1")
    version = model.state.get("_sklearn_version", "")
    return LinearForm(weight.reshape(-1), float(intercept.reshape(())), classifies, str(version)[:20])


def _before(scaler: Model, form: LinearForm) -> LinearForm:
    """What the form computes when a StandardScaler stands before it: w . ((x - mean) / scale) + b."""
    if scaler.name != "StandardScaler":
        raise ProbeError(f"its pipeline has a {scaler.name} where a StandardScaler may stand")
    weight, intercept = form.weight, form.intercept
    if scaler.state.get("with_std", True):
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            weight = _bounded(weight / _numbers(scaler, "scale_", weight.shape), "its scaled weight")
    if scaler.state.get("with_mean", True):
        intercept -= float(weight @ _numbers(scaler, "mean_", weight.shape))
    return replace(form, weight=weight, intercept=intercept)


def _numbers(model: Model, name: str, shape: tuple[int, ...] | None = None) -> FloatArray:
    value: Any = model.state.get(name)
    if not isinstance(value, np.ndarray | float | int):
        raise ProbeError(f"its {model.name} has no {name}: it was never fitted")
    numbers = _bounded(np.asarray(value, dtype=np.float64), f"{name} of its {model.name}")
    if shape is not None and numbers.shape != shape:
        raise ProbeError(f"{name} of its {model.name} has shape {numbers.shape}, the model after it {shape}")
    return numbers


def _bounded(numbers: FloatArray, what: str) -> FloatArray:
    if not (np.abs(numbers) <= MOST).all():  # NaN is not
        raise ProbeError(f"{what} has values that are not finite in single precision")
    return numbers
