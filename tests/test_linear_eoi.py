"""The linear probe agrees with scikit-learn, and with what the research code chose."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from threadpoolctl import threadpool_limits

from offline.activations import harvest
from probes import lanczos, linear_sweep
from probes.base import Activations, Examples, FloatArray, Inputs, ProbeError
from probes.card import Site, Task
from probes.engine.reading import Reading
from probes.linear_eoi import ALPHAS, LinearEoi
from probes.linear_models import WIDE, logistic, ridge
from probes.linear_sweep import sweep
from probes.logistic import fit_logistic, sigmoid
from probes.measures import auroc
from probes.prompt import Renderer, new_pass
from probes.selection import LayerRule

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"
SITES = [Site(layer=layer, position=position) for layer in (2, 5) for position in (-3, -2, -1)]
KNOWS, ECHO = Site(layer=5, position=-3), Site(layer=2, position=-1)


def problems(n: int, d: int, seed: int = 0, scale: float = 3.0) -> Examples:
    """Two arms, whose success one site knows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, len(SITES), d)).astype(np.float32) * np.float32(scale)
    signal = x[:, SITES.index(KNOWS)] @ np.random.default_rng(1).normal(size=(d, 2)) / scale
    rates = rng.binomial(8, sigmoid(signal)) / 8
    return Examples(Inputs(activations={site: x[:, i] for i, site in enumerate(SITES)}), rates)


def echoed(examples: Examples) -> Examples:
    """The same, but for a site of the shallower layer that knows nearly as much."""
    known = examples.inputs.activations[KNOWS]
    noise = np.random.default_rng(3).normal(size=known.shape).astype(np.float32)
    activations = {**examples.inputs.activations, ECHO: known + noise * known.std() / 20}
    return replace(examples, inputs=replace(examples.inputs, activations=activations))


def votes(examples: Examples) -> Examples:
    return replace(examples, labels=(examples.labels > 0.5).astype(np.float64))


def stretched(n: int, d: int, seed: int = 0) -> Activations:
    """Directions of very different size, as activations have them: one site's, (1, n, d)."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * np.geomspace(30, 0.01, d) @ np.linalg.qr(rng.normal(size=(d, d)))[0]
    return x.astype(np.float32)[None]


def close_to_ridge(x: Activations, y: FloatArray) -> None:
    """(1, n, d), (n, arms)"""
    found = ridge(x, y, ALPHAS)
    for a, alpha in enumerate(ALPHAS):
        model = Ridge(alpha=alpha, fit_intercept=False).fit(x[0].astype(float), y)
        theirs = model.predict(x[0].astype(float)).reshape(y.shape)
        np.testing.assert_allclose(x[0].astype(float) @ found[:, 0, a].T, theirs, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(300, 24), (40, 64), (60, 60)])
def test_ridge_agrees_with_scikit_learn(n: int, d: int) -> None:
    y = np.random.default_rng(1).uniform(size=(n, 2))
    close_to_ridge(stretched(n, d), y)


def test_wide_ridge_agrees_with_scikit_learn() -> None:
    rng, d = np.random.default_rng(0), WIDE + 8
    y = rng.uniform(size=(3 * d, 2))
    well_conditioned = rng.normal(size=(1, 3 * d, d)).astype(np.float32)
    gram, xty = well_conditioned[0].T @ well_conditioned[0], well_conditioned[0].T.astype(float) @ y[:, 0]
    assert lanczos.ridge(gram, xty, ALPHAS) is not None, "the quick way was not tried"
    close_to_ridge(well_conditioned, y)
    close_to_ridge(stretched(3 * d, d), y)


def test_the_quick_way_to_ridge_knows_its_limits() -> None:
    x = stretched(300, 100)[0]
    assert lanczos.ridge(x.T @ x, x.T.astype(float) @ np.linspace(0, 1, 300), ALPHAS) is None


def test_ridge_on_activations_without_spread() -> None:
    x = stretched(50, 8)
    x[:, :, 3] = 0
    x[:, :, 5] = x[:, :, 4]
    close_to_ridge(x, np.random.default_rng(0).uniform(size=(50, 1)))
    assert not ridge(np.zeros_like(x), np.ones((50, 1)), ALPHAS).any()
    assert not logistic(np.zeros_like(x), np.ones((50, 1)), ALPHAS).any()


@pytest.mark.parametrize(("n", "d"), [(300, 24), (40, 64), (3 * WIDE, WIDE + 8)])
@pytest.mark.parametrize("stretch", [False, True])
def test_every_logistic_candidate_is_near_the_optimum(n: int, d: int, stretch: bool) -> None:
    rng = np.random.default_rng(0)
    x = stretched(n, d) if stretch else rng.normal(size=(1, n, d)).astype(np.float32)
    y = (rng.uniform(size=n) < sigmoid(x[0] @ rng.normal(size=d) / np.sqrt(d))).astype(float)
    found = logistic(x, y[:, None], ALPHAS[1:])[0, 0]
    for alpha, w in zip(ALPHAS[1:], found, strict=True):
        best = fit_logistic(x[0].astype(float), y, alpha, start=w)
        assert np.abs(sigmoid(x[0] @ w) - sigmoid(x[0] @ best)).max() < 0.03


@pytest.mark.parametrize(("n", "d"), [(300, 24), (40, 64)])
@pytest.mark.parametrize("task", get_args(Task))
@pytest.mark.parametrize("layer_rule", get_args(LayerRule))
def test_the_chosen_probe_agrees_with_scikit_learn(n: int, d: int, task: Task, layer_rule: LayerRule) -> None:
    train, validation = echoed(problems(n, d)), echoed(problems(100, d, seed=2))
    if task == "classification":
        train, validation = votes(train), votes(validation)
    for arm, fit in enumerate(LinearEoi.fit(train, validation, task, layer_rule=layer_rule)):
        assert fit.alpha is not None
        assert fit.probe.site == ECHO or (fit.probe.site == KNOWS and layer_rule == "best")
        x = train.inputs.activations[fit.probe.site].astype(float)
        ours, y = fit.probe.raw(train.inputs), train.labels[:, arm]
        if task == "regression":
            theirs = Ridge(alpha=fit.alpha, fit_intercept=False).fit(x, y).predict(x)
        else:
            model = LogisticRegression(C=1 / fit.alpha, fit_intercept=False, solver="newton-cholesky", tol=1e-10)
            ours, theirs = sigmoid(ours), model.fit(x, y).predict_proba(x)[:, 1]
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("task", get_args(Task))
def test_the_site_that_knows_is_chosen(task: Task) -> None:
    steps: list[float] = []
    train, validation = problems(400, 16), problems(200, 16, seed=2)
    for fit in LinearEoi.fit(train, validation, task, on_step=steps.append):
        assert fit.probe.site == KNOWS
        assert fit.held_out.shape == (200,)
    assert sum(steps) == pytest.approx(1)


@pytest.mark.parametrize("task", get_args(Task))
def test_an_arm_has_the_same_bits_whichever_others_there_are(task: Task) -> None:
    train, validation = problems(200, 96), problems(100, 96, seed=2)
    together = LinearEoi.fit(train, validation, task)
    for arm, fit in enumerate(together):
        one = replace(train, labels=train.labels[:, [arm]]), replace(validation, labels=validation.labels[:, [arm]])
        with threadpool_limits(1):
            [alone] = LinearEoi.fit(*one, task)
        assert alone.probe.tensors()["weight"].tobytes() == fit.probe.tensors()["weight"].tobytes()
        assert alone.held_out.tobytes() == fit.held_out.tobytes()
        assert (alone.score, alone.alpha, alone.probe.site) == (fit.score, fit.alpha, fit.probe.site)


def test_the_first_of_equals_wins() -> None:
    examples = problems(100, 8)
    same = Inputs(activations=dict.fromkeys(SITES, examples.inputs.activations[KNOWS]))
    examples = replace(examples, inputs=same)
    for task in get_args(Task):
        for fit in LinearEoi.fit(examples, examples, task, alphas=(2.0, 2.0)):
            assert (fit.probe.site, fit.alpha) == (SITES[0], 2.0)


def test_noise_teaches_nothing() -> None:
    examples = problems(600, 16)
    examples = replace(examples, labels=np.random.default_rng(0).permutation(examples.labels))
    train, validation, test = (examples.rows(slice(*ends)) for ends in ((0, 300), (300, 400), (400, 600)))
    for task in get_args(Task):
        fit, _ = LinearEoi.fit(train, validation, task)
        assert abs(auroc(fit.probe.raw(test.inputs), test.labels[:, 0]) - 0.5) < 0.06


def test_what_cannot_be_learnt_is_refused() -> None:
    examples = problems(50, 8)
    with pytest.raises(ProbeError, match="constant"):
        LinearEoi.fit(examples, replace(examples, labels=np.ones_like(examples.labels)))
    with pytest.raises(ProbeError, match="hold none"):
        LinearEoi.fit(replace(examples, inputs=Inputs()), examples)
    for task in get_args(Task):
        for wrong in (np.nan, np.inf):
            hole = examples.inputs.activations[KNOWS].copy()
            hole[20, 3] = wrong
            holed = replace(examples, inputs=Inputs(activations=examples.inputs.activations | {KNOWS: hole}))
            with pytest.raises(ProbeError, match="not finite"):
                LinearEoi.fit(holed, examples, task)
            with pytest.raises(ProbeError, match="not finite"):
                LinearEoi.fit(examples, holed, task)


@pytest.mark.parametrize("models", [ridge, logistic])
def test_wide_activations_that_are_not_finite_are_refused(models: Callable[..., FloatArray]) -> None:
    x = np.random.default_rng(0).normal(size=(1, WIDE + 2, WIDE + 1)).astype(np.float32)
    x[0, 5, 7] = np.inf
    with pytest.raises(ProbeError, match="not finite"):
        models(x, np.linspace(0, 1, WIDE + 2)[:, None], ALPHAS)


def test_one_product_for_several_probes_changes_no_bit_that_matters() -> None:
    inputs = problems(50, 96).inputs
    rng = np.random.default_rng(0)
    probes = [LinearEoi(rng.normal(size=96).astype(np.float32), KNOWS) for _ in range(4)]
    together = LinearEoi.raw_all(probes, inputs)
    np.testing.assert_allclose(together, np.stack([p.raw(inputs) for p in probes], axis=1), rtol=1e-12, atol=1e-12)


def test_memory_maps_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = problems(200, 16), problems(100, 16, seed=2)
    stored = np.stack(list(train.inputs.activations.values()), axis=1)
    np.save(tmp_path / "sites.npy", stored)
    mapped = np.load(tmp_path / "sites.npy", mmap_mode="r")
    from_disk = replace(train, inputs=Inputs(activations={site: mapped[:, i] for i, site in enumerate(SITES)}))
    for task in get_args(Task):
        expected = sweep(train, validation, task, ALPHAS).raw
        np.testing.assert_array_equal(sweep(from_disk, validation, task, ALPHAS).raw, expected)
        with monkeypatch.context() as patch:
            patch.setattr(linear_sweep, "BLOCK_BYTES", 100)  # less than a site
            np.testing.assert_allclose(sweep(from_disk, validation, task, ALPHAS, threads=2).raw, expected, atol=1e-2)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the research code's results are not part of the repository")
def test_the_research_codes_choice_and_predictions() -> None:
    data = pq.read_table(GOLDEN / "dataset.parquet").to_pandas()
    renderer = Renderer(new_pass(str(GOLDEN / "model")))
    prompts = [renderer.render([{"role": "user", "content": question}]).token_ids for question in data["question"]]
    sites = tuple(Site(layer=layer, position=position) for layer in range(6) for position in range(-5, 0))
    inputs = replace(harvest(renderer.pass_, prompts, Reading(sites), device="cpu"), texts=list(data["question"]))
    rows = {split: (data["split"] == split).to_numpy() for split in ("train", "val", "test")}
    stored = np.load(GOLDEN / "activations.npz")["activations"].reshape(32, len(sites), -1)
    for i, site in enumerate(sites):
        np.testing.assert_allclose(inputs.activations[site][rows["test"]][:32], stored[:, i], atol=5e-5)
    expected = json.loads((GOLDEN / "predictions.json").read_text())
    tasks: dict[str, Task] = {"success_rate": "regression", "majority_vote_is_correct": "classification"}
    for label, task in tasks.items():
        y = data[label].to_numpy(dtype=float)[:, None]
        train, validation = (Examples(inputs.rows(rows[split]), y[rows[split]]) for split in ("train", "val"))
        [fit] = LinearEoi.fit(train, validation, task)
        assert fit.probe.site is not None
        chosen = fit.probe.site.layer, fit.probe.site.position, fit.alpha
        assert chosen == tuple(expected[label][key] for key in ("layer", "position", "alpha"))
        assert fit.score == pytest.approx(expected[label]["val"], abs=1e-9)
        raw, theirs = fit.probe.raw(inputs.rows(rows["test"])), np.array(expected[label]["predictions"])
        if task == "regression":
            np.testing.assert_allclose(raw, theirs, atol=1e-4)
        else:
            metadata = next(GOLDEN.glob(f"*--{label}--*/probe_metadata.json"))
            platt = json.loads(metadata.read_text())
            predicted = sigmoid(platt["platt_coef"] * raw + platt["platt_intercept"])
            # Ours is the optimum; the research code's solver stops before it, as far as scikit-learn's defaults allow.
            np.testing.assert_allclose(predicted, theirs, atol=3e-3)
