"""The linear probe agrees with scikit-learn, and with what the research code chose."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression, Ridge

from offline.activations import harvest
from probes.base import Activations, FloatArray, ProbeError
from probes.calibration import auroc
from probes.linear_eoi import ALPHAS, LinearEoi, Split, _logistic, _ridge
from probes.logistic import sigmoid
from probes.prompt import Renderer, new_pass

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"
LAYERS, POSITIONS = (2, 5), (-3, -2, -1)


def problems(n: int, d: int, seed: int = 0) -> tuple[Activations, FloatArray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(LAYERS), len(POSITIONS), d)).astype(np.float32) * 3
    signal = x[:, 1, 0] @ np.random.default_rng(1).normal(size=(d, 2)) / 3
    return x, rng.binomial(8, sigmoid(signal)) / 8


@pytest.mark.parametrize(("n", "d"), [(300, 24), (40, 64)])
def test_ridge_agrees_with_scikit_learn(n: int, d: int) -> None:
    x, y = problems(n, d)
    for position, weights in enumerate(_ridge(x[:, 0], y, ALPHAS)):
        for a, alpha in enumerate(ALPHAS):
            theirs = Ridge(alpha=alpha, fit_intercept=False).fit(x[:, 0, position].astype(float), y)
            np.testing.assert_allclose(x[:, 0, position] @ weights[a], theirs.predict(x[:, 0, position]), atol=1e-5)


def test_logistic_agrees_with_scikit_learn() -> None:
    x, rates = problems(300, 24)
    y = (rates > 0.5).astype(float)
    for position, weights in enumerate(_logistic(x[:, 0], y, ALPHAS)):
        for a, alpha in enumerate(ALPHAS):
            model = LogisticRegression(C=1 / alpha, fit_intercept=False, solver="newton-cholesky", tol=1e-10)
            theirs = model.fit(x[:, 0, position].astype(float), y[:, 1]).predict_proba(x[:, 0, position])[:, 1]
            np.testing.assert_allclose(sigmoid(x[:, 0, position] @ weights[a, :, 1]), theirs, atol=1e-5)


@pytest.mark.parametrize("task", ["regression", "classification"])
def test_the_site_that_knows_is_chosen(task: str) -> None:
    (x, y), (x_held, y_held) = problems(400, 16), problems(200, 16, seed=2)
    for probe, choice in LinearEoi.fit(Split(x, y), Split(x_held, y_held), LAYERS, POSITIONS, task):  # type: ignore[arg-type]
        assert (choice.site.layer, choice.site.position) == (5, -3)
        assert probe.raw(x_held[:, 1, 0]).shape == (200,)


def test_the_first_of_equals_wins() -> None:
    x, y = problems(100, 8)
    same = np.broadcast_to(x[:, 1:, :1], x.shape)
    for _, choice in LinearEoi.fit(Split(same, y), Split(same, y), LAYERS, POSITIONS, alphas=(2.0, 2.0)):
        assert (choice.site.layer, choice.site.position, choice.alpha) == (2, -3, 2.0)


def test_noise_teaches_nothing() -> None:
    rng = np.random.default_rng(0)
    x, y = problems(600, 16)
    y = rng.permutation(y)
    train, validation, test = (slice(0, 300), slice(300, 400), slice(400, 600))
    [(probe, choice), _] = LinearEoi.fit(
        Split(x[train], y[train]), Split(x[validation], y[validation]), LAYERS, POSITIONS
    )
    i, j = LAYERS.index(choice.site.layer), POSITIONS.index(choice.site.position)
    assert abs(auroc(probe.raw(x[test, i, j]), y[test, 0]) - 0.5) < 0.06


def test_constant_labels_are_refused() -> None:
    x, y = problems(50, 8)
    with pytest.raises(ProbeError, match="constant"):
        LinearEoi.fit(Split(x, y), Split(x, np.ones_like(y)), LAYERS, POSITIONS)


def test_one_product_for_several_probes_changes_no_bit() -> None:
    x, _ = problems(50, 96)
    rng = np.random.default_rng(0)
    probes = [LinearEoi(rng.normal(size=96).astype(np.float32)) for _ in range(4)]
    together = LinearEoi.raw_all(probes, x[:, 0, 0])
    np.testing.assert_allclose(together, np.stack([p.raw(x[:, 0, 0]) for p in probes], axis=1), rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the research code's results are not part of the repository")
def test_the_research_codes_choice_and_predictions() -> None:
    data = pq.read_table(GOLDEN / "dataset.parquet").to_pandas()
    renderer = Renderer(new_pass(str(GOLDEN / "model")))
    prompts = [renderer.render([{"role": "user", "content": question}]).token_ids for question in data["question"]]
    found = harvest(renderer.pass_, prompts, range(6), range(-5, 0), device="cpu")
    rows = {split: (data["split"] == split).to_numpy() for split in ("train", "val", "test")}
    stored = np.load(GOLDEN / "activations.npz")["activations"]
    np.testing.assert_allclose(found.values[rows["test"]][:32], stored, atol=5e-5)
    expected = json.loads((GOLDEN / "predictions.json").read_text())
    for label, task in (("success_rate", "regression"), ("majority_vote_is_correct", "classification")):
        y = data[label].to_numpy(dtype=float)[:, None]
        train, validation = (Split(found.values[rows[split]], y[rows[split]]) for split in ("train", "val"))
        [(probe, choice)] = LinearEoi.fit(train, validation, found.layers, found.positions, task)  # type: ignore[arg-type]
        chosen = choice.site.layer, choice.site.position, choice.alpha
        assert chosen == tuple(expected[label][key] for key in ("layer", "position", "alpha"))
        if task == "regression":
            predicted = probe.raw(found.at(choice.site)[rows["test"]])
            np.testing.assert_allclose(predicted, expected[label]["predictions"], atol=1e-4)
