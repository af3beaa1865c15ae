"""What fitted models compute, for several releases of scikit-learn and joblib, whose files stand in tests/golden."""

import json
from pathlib import Path

import numpy as np
import pytest

from probes.allow_list import Model, read_model
from probes.base import ProbeError
from probes.linear_form import linear_form

JOBLIB = Path(__file__).parent / "golden/joblib"
X = np.sin(np.arange(240, dtype=np.float32)).reshape(40, 6) * np.float32(3)  # as in make.py
RELEASES = sorted(file.stem for file in JOBLIB.glob("*.json"))


def test_there_are_several_releases() -> None:
    assert len(RELEASES) >= 4


@pytest.mark.parametrize("kind", ["ridge", "logistic", "platt", "pipeline"])
@pytest.mark.parametrize("release", RELEASES)
def test_computes_what_that_release_predicted(release: str, kind: str) -> None:
    form = linear_form(read_model(JOBLIB / f"{release}-{kind}.joblib"))
    x = X[:, :1] if kind == "platt" else X
    expected = json.loads((JOBLIB / f"{release}.json").read_text())[kind]
    np.testing.assert_allclose(x @ form.weight + form.intercept, expected, atol=2e-6)
    assert form.classifies == (kind != "ridge")
    assert form.version.startswith(release)


def model(name: str = "Ridge", **state: object) -> Model:
    return Model(name, state, built=True)


def pipeline(scaler: Model, last: Model) -> Model:
    return model("Pipeline", steps=[("scaler", scaler), ("model", last)])


RIDGE = model(coef_=np.array([1.0, 2.0]), intercept_=0.5)


def test_scalers_do_what_they_were_told() -> None:
    mean, scale = np.array([1.0, -1.0]), np.array([2.0, 4.0])
    for with_mean, with_std in ((True, True), (True, False), (False, True), (False, False)):
        scaler = model("StandardScaler", mean_=mean, scale_=scale, with_mean=with_mean, with_std=with_std)
        form = linear_form(pipeline(scaler, RIDGE))
        scaled = (np.array([3.0, 5.0]) - mean * with_mean) / np.where(with_std, scale, 1.0)
        assert np.array([3.0, 5.0]) @ form.weight + form.intercept == pytest.approx(scaled @ [1.0, 2.0] + 0.5)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (model(coef_=np.ones((3, 2)), intercept_=0.0), "one output is needed"),
        (model(coef_=np.ones((1, 1, 2)), intercept_=0.0), "one output is needed"),
        (model(coef_=np.ones(2), intercept_=np.zeros(2)), "2 intercepts"),
        (model(coef_=np.array([np.nan, 1.0]), intercept_=0.0), "coef_ of its Ridge has values that are not finite"),
        (model(coef_=np.ones(2)), "no intercept_: it was never fitted"),
        (model(coef_="ones", intercept_=0.0), "no coef_"),
        (model("LogisticRegression", coef_=np.ones(2), intercept_=0.0, classes_=np.array([1, 2])), "not 0 and 1"),
        (model("StandardScaler", mean_=np.zeros(2)), "a StandardScaler is no linear model"),
        (model("Pipeline", steps=[("a", "passthrough")]), "no fitted models"),
        (model(coef_=np.array([1e300, 1.0]), intercept_=0.0), "not finite in single"),
        (model("Pipeline", steps=[]), "no fitted models"),
        (model("Pipeline", steps=[1]), "no fitted models"),
        (pipeline(RIDGE, RIDGE), "a Ridge where a StandardScaler may stand"),
        (pipeline(model("StandardScaler", mean_=np.zeros(3), scale_=np.ones(3)), RIDGE), r"shape \(3,\)"),
        (
            pipeline(model("StandardScaler", mean_=np.zeros(2), scale_=np.zeros(2)), RIDGE),
            "scaled weight has values that",
        ),
    ],
)
def test_what_is_no_linear_form_is_refused(broken: Model, message: str) -> None:
    with pytest.raises(ProbeError, match=message):
        linear_form(broken)
