"""Folders of the research project: predictions are its own, and what a folder cannot tell is not made up."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes import calibration
from probes.artifact import Artifact, save_artifact
from probes.base import Inputs, ProbeError
from probes.engine.base import Prompt
from probes.engine.local import LocalEngine
from probes.legacy import is_legacy, load_legacy
from probes.legacy_card import MATHEMATICS, SUFFIX
from probes.prompt import Renderer
from probes.reference import load_probe
from tests.support.legacy import D_MODEL, legacy_folder
from tests.support.probes import NANO_POOL, artifact
from tests.test_allow_list_hostile import HOSTILE

GOLDEN = Path(__file__).parents[2] / "shared/data/golden"
NANO = {"acme/nano-small": str(NANO_POOL / "nano-small")}
X = np.random.default_rng(5).normal(size=(30, D_MODEL)).astype(np.float32)


def predictions(loaded: Artifact) -> tuple[Any, Any]:
    """For X: raw, and as a probability."""
    site = loaded.card.site
    assert site is not None
    raw = loaded.probe.raw(Inputs(activations={site: X}))
    return raw, calibration.apply(loaded.card.calibration, raw)


@pytest.mark.skipif(not GOLDEN.exists(), reason="the research code's results are not part of the repository")
@pytest.mark.parametrize("label", ["success_rate", "majority_vote_is_correct"])
def test_predicts_what_the_research_code_predicts(label: str) -> None:
    """From text to prediction, for all its test problems: from questions, and from the prompts as it rendered them."""
    [folder] = GOLDEN.glob(f"*--{label}--*")
    loaded = load_probe(folder, probe_models={"pika-nano/medium": str(GOLDEN / "model")})
    assert loaded.pass_ is not None
    data = pq.read_table(GOLDEN / "dataset.parquet").to_pandas()
    test = data[data["split"] == "test"]
    renderer = Renderer(loaded.pass_)
    rendered = [renderer.render([{"role": "user", "content": text}]).token_ids for text in test["question"]]
    assert rendered == [renderer.accept(prompt).token_ids for prompt in test["formatted_prompt"]]
    raw = LocalEngine([loaded], "cpu").raw([Prompt((ids,)) for ids in rendered])[:, 0]
    found = raw if label == "success_rate" else calibration.apply(loaded.card.calibration, raw)
    expected = json.loads((GOLDEN / "predictions.json").read_text())[label]
    np.testing.assert_allclose(found, expected["predictions"], atol=1e-4)
    card = loaded.card
    assert card.site is not None
    assert (card.site.layer, card.site.position, card.best_alpha) == tuple(
        expected[key] for key in ("layer", "position", "alpha")
    )
    assert card.calibration.of == (None if label == "success_rate" else "majority_vote")


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_predicts_what_scikit_learn_predicts(tmp_path: Path, task: str) -> None:
    folder = legacy_folder(tmp_path / "probe", task)
    raw, success = predictions(load_legacy(folder, verify=False))
    model = joblib.load(folder / "best_probe.joblib")
    if task == "regression":
        np.testing.assert_allclose(raw, model.predict(X), atol=1e-5)
        np.testing.assert_array_equal(success, np.clip(raw, 0, 1))
    else:
        scaler = joblib.load(folder / "platt_scaler.joblib")
        np.testing.assert_allclose(raw, model.decision_function(X), atol=1e-5)
        expected = scaler.predict_proba(model.decision_function(X).reshape(-1, 1))[:, 1]
        np.testing.assert_allclose(success, expected, atol=1e-6)


def test_a_classifiers_intercept_and_scaler_are_taken_in(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path / "probe")
    y = X[:, 0] + np.random.default_rng(1).normal(size=30) > 0
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X + 2, y.astype(float))
    joblib.dump(model, folder / "best_probe.joblib")
    loaded = load_legacy(folder, verify=False)
    scaler = joblib.load(folder / "platt_scaler.joblib")
    expected = scaler.predict_proba(model.decision_function(X).reshape(-1, 1))[:, 1]
    np.testing.assert_allclose(predictions(loaded)[1], expected, atol=1e-5)


def test_without_a_scale_nothing_is_called_calibrated(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path / "probe", has_platt_scaler=None, files=["best_probe.joblib"])
    (folder / "platt_scaler.joblib").unlink()
    loaded = load_legacy(folder, verify=False)
    model = joblib.load(folder / "best_probe.joblib")
    np.testing.assert_allclose(predictions(loaded)[1], model.predict_proba(X)[:, 1], atol=1e-6)
    assert loaded.card.calibration.of is None
    cooled = legacy_folder(tmp_path / "cooled", has_platt_scaler=False, files=[], calibration_temperature=2.0)
    (cooled / "platt_scaler.joblib").unlink()
    expected = 1 / (1 + np.exp(-joblib.load(cooled / "best_probe.joblib").decision_function(X) / 2))
    np.testing.assert_allclose(predictions(load_legacy(cooled, verify=False))[1], expected, atol=1e-6)


def test_names_say_model_and_effort(tmp_path: Path) -> None:
    folder = legacy_folder(
        tmp_path / "probe", model_name="openai/gpt-oss-20b_low", dataset="DigitalLearningGmbH_MATH-lighteval"
    )
    card = load_legacy(folder, verify=False).card
    assert card.pass_ is not None
    assert card.pass_.probe_model == card.target.model == "openai/gpt-oss-20b"
    assert card.pass_.recipe.template_kwargs == card.target.request == {"reasoning_effort": "low"}
    assert card.target.arm == "gpt-oss-20b_low"
    assert card.model_name == "openai/gpt-oss-20b_low"
    assert card.pass_.recipe.suffix == " Let's think step by step and output the final answer within \\boxed{}."
    assert (card.pass_.recipe.max_tokens, card.target.max_tokens, card.target.k) == (1024, 3000, 5)


def test_plain_names_say_only_the_model(tmp_path: Path) -> None:
    card = load_legacy(legacy_folder(tmp_path / "probe", model_name="acme/nano_lower"), verify=False).card
    assert card.pass_ is not None
    assert card.pass_.probe_model == "acme/nano_lower"
    assert card.pass_.recipe.template_kwargs == {}
    assert card.pass_.recipe.suffix == ""


def test_the_suffix_stands_in_the_users_turn(tmp_path: Path) -> None:
    loaded = load_legacy(legacy_folder(tmp_path / "probe", dataset="openai_gsm8k"), probe_models=NANO)
    assert loaded.pass_ is not None
    renderer = Renderer(loaded.pass_)
    prompt = f"<|im_start|>user\nWhat is 7 + 5?{SUFFIX}<|im_end|>\n<|im_start|>assistant\n"
    assert renderer.render([{"role": "user", "content": "What is 7 + 5?"}]) == renderer.accept(prompt)


@pytest.mark.parametrize(
    ("dataset", "mathematics"),
    [
        ("DigitalLearningGmbH_MATH-lighteval", True),
        ("MATH", True),
        ("openai_gsm8k", True),
        ("gneubig_aime-1983-2024", True),
        ("opencompass_AIME2025", True),
        ("Qwen_PolyMath_en", True),
        ("E2H-AMC", True),
        ("nano", False),
        ("running_total", False),
        ("livecodebench", False),
        ("aftermath", False),
    ],
)
def test_the_suffix_is_for_mathematics(dataset: str, mathematics: bool) -> None:
    assert bool(MATHEMATICS.match(dataset)) == mathematics
    assert SUFFIX.startswith(" ")


def test_the_other_published_form_is_read(tmp_path: Path) -> None:
    """Some folders have test_auc and val_auc, a display name, and no test_score."""
    folder = legacy_folder(
        tmp_path / "gpt-oss-20b-low--MATH--linear-eoi-probe--mv-correct--k5-t1.0",
        test_score=None,
        best_val_score=None,
        test_auc=0.83,
        val_auc=0.84,
        dataset_display="MATH (DigitalLearningGmbH)",
        max_len=131072,
    )
    card = load_legacy(folder, verify=False).card
    assert (card.test_score, card.best_val_score) == (0.83, 0.84)
    assert card.training["recorded"]["dataset_display"] == "MATH (DigitalLearningGmbH)"


def test_what_the_folder_cannot_tell_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_legacy(legacy_folder(tmp_path / "probe"), probe_models=NANO)
    assert "template, tokenizer, revision and weights" in caplog.text
    assert loaded.mismatches == ()
    card = loaded.card
    assert (card.canary_token_ids, card.probe_model_fingerprint, card.mean_tokens, card.metrics) == (
        None,
        None,
        None,
        [],
    )


def test_a_revision_asked_for_is_no_mismatch(tmp_path: Path) -> None:
    models = {"acme/nano-small": "acme/nano-small@abc"}
    loaded = load_legacy(legacy_folder(tmp_path / "probe"), probe_models=models, verify=False)
    assert loaded.pass_ is not None
    assert loaded.card.pass_ is not None
    assert loaded.pass_.revision == loaded.card.pass_.revision == "abc"


def test_the_probe_models_own_type_is_served(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path / "probe")
    model = tmp_path / "model"
    model.mkdir()
    for file in (NANO_POOL / "nano-small").iterdir():
        if file.name != "config.json":
            (model / file.name).symlink_to(file)
    config = json.loads((NANO_POOL / "nano-small/config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    for facts, expected in (
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "bfloat16"}, "bfloat16"),
        ({}, "float32"),
        ({"quantization_config": {}}, "bfloat16"),
    ):
        (model / "config.json").write_text(json.dumps(config | facts))
        loaded = load_legacy(folder, probe_models={"acme/nano-small": str(model)})
        assert loaded.pass_ is not None
        assert loaded.pass_.dtype == expected
    with pytest.raises(ProbeError, match="--allow-mismatch dtype"):
        load_legacy(folder, probe_models={"acme/nano-small": str(model)}, dtype="float16")
    (model / "config.json").write_text(json.dumps(config | {"dtype": "float8"}))
    with pytest.raises(ProbeError, match="'float8', in which no probe model is run"):
        load_legacy(folder, probe_models={"acme/nano-small": str(model)})


def test_a_probe_model_of_another_size_is_noticed(tmp_path: Path) -> None:
    models = {"acme/nano-small": str(NANO_POOL / "nano-large")}
    with pytest.raises(ProbeError, match=r"reads 96 dimensions, .* has 160: give acme/nano-small"):
        load_legacy(legacy_folder(tmp_path / "probe"), probe_models=models, verify=False)


def test_folders_are_told_apart(tmp_path: Path) -> None:
    assert is_legacy(legacy_folder(tmp_path / "probe"))
    artifact(tmp_path / "ours")
    assert not is_legacy(tmp_path / "ours")
    assert not is_legacy(tmp_path / "none")
    assert load_probe(tmp_path / "probe", verify=False).card.calibration.of == "majority_vote"
    assert load_probe(tmp_path / "ours").card.kind == "linear_eoi"


def test_saved_again_it_predicts_the_same(tmp_path: Path) -> None:
    loaded = load_legacy(legacy_folder(tmp_path / "probe"), verify=False)
    save_artifact(tmp_path / "ours", loaded.card, loaded.probe)
    again = load_probe(tmp_path / "ours", verify=False)
    assert again.card == loaded.card
    for first, second in zip(predictions(loaded), predictions(again), strict=True):
        np.testing.assert_array_equal(first, second)


def rewrite(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def grown(folder: Path) -> None:
    with (folder / "config.json").open("r+b") as file:
        file.truncate(2**30)  # sparse


FLAWS: dict[str, tuple[dict[str, Any], Callable[[Path], Any], str]] = {
    "TF-IDF": ({"probe_type": "tfidf_probe"}, lambda folder: None, r"holds a 'tfidf_probe' .*pika train"),
    "attention": ({"probe_type": "attn_probe"}, lambda folder: None, r"holds a 'attn_probe' .*pika train"),
    "no probe": ({}, lambda folder: (folder / "best_probe.joblib").unlink(), "holds no best_probe.joblib"),
    "no scaler": ({}, lambda folder: (folder / "platt_scaler.joblib").unlink(), "platt_scaler.joblib is missing"),
    "no config": ({}, lambda folder: (folder / "config.json").unlink(), "lack dataset, label_type, k"),
    "no JSON": ({}, rewrite("config.json", b"{"), "config.json is not valid JSON"),
    "deep JSON": ({}, rewrite("config.json", b"[" * 10**6), "config.json is not valid JSON"),
    "no object": ({}, rewrite("probe_metadata.json", b"[]"), "must hold a JSON object"),
    "huge JSON": ({}, grown, "more than 4 MiB"),
    "contradiction": (
        {},
        rewrite("probe_metadata.json", b'{"best_layer_idx": 2}'),
        "best_layer_idx = 1, probe_metadata.json 2",
    ),
    "position": ({"best_position_value": 1}, lambda folder: None, "less than 0"),
    "layer": ({"best_layer_idx": "1; rm"}, lambda folder: None, "valid integer"),
    "label": ({"label_type": "pass_at_k"}, lambda folder: None, "label: Input should be 'success_rate'"),
    "k": ({"k": 0}, lambda folder: None, "target.k"),
    "d_model": ({"d_model": 95}, lambda folder: None, r"shape \(96,\), d_model = 95"),
    "no name": ({"model_name": ""}, lambda folder: None, "model_name is empty"),
    "task": ({"task_type": "regression"}, lambda folder: None, "'regression', which the model .* is not made for"),
    **{
        f"temperature {str(value)[:9]}": (
            {"calibration_temperature": value},
            lambda folder: None,
            "calibration_temperature is .{1,80}, which is no finite number above 0",
        )
        for value in ("abc", [1], {"a": 1}, 10**400, 1e-320, -1, True)
    },
    "no length": ({"max_len": None}, lambda folder: None, "lack max_len"),
    "two inputs": (
        {},
        lambda folder: joblib.dump(LogisticRegression().fit(np.eye(4), [0.0, 1, 0, 1]), folder / "platt_scaler.joblib"),
        "platt_scaler.joblib is no logistic regression of one input",
    ),
    "several outputs": (
        {},
        lambda folder: joblib.dump(Ridge().fit(np.eye(4), np.eye(4)), folder / "best_probe.joblib"),
        "best_probe.joblib: .*one output",
    ),
    "hostile probe": (
        {},
        lambda folder: joblib.dump(HOSTILE["os.system"](folder), folder / "best_probe.joblib"),
        "best_probe.joblib is refused",
    ),
    "hostile scaler": (
        {},
        lambda folder: joblib.dump(HOSTILE["an attribute"](folder), folder / "platt_scaler.joblib"),
        "platt_scaler.joblib is refused",
    ),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_are_named(tmp_path: Path, flaw: str) -> None:
    changes, change, message = FLAWS[flaw]
    folder = legacy_folder(tmp_path / "probe", **changes)
    change(folder)
    with pytest.raises(ProbeError, match=message) as caught:
        load_legacy(folder, verify=False)
    assert "\n" not in str(caught.value)
    assert not (folder / "ran").exists()


def test_a_regression_with_an_intercept_is_refused(tmp_path: Path) -> None:
    folder = legacy_folder(tmp_path / "probe", "regression")
    joblib.dump(Ridge().fit(X, X[:, 0] + 1), folder / "best_probe.joblib")
    with pytest.raises(ProbeError, match=r"regression with an intercept.*pika train"):
        load_legacy(folder, verify=False)


def test_text_probes_of_the_research_project_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "tfidf"
    folder.mkdir()
    for name in ("model.joblib", "vectorizer.joblib"):
        (folder / name).write_bytes(b"")
    (folder / "config.json").write_text('{"probe_type": "tfidf_probe"}')
    with pytest.raises(ProbeError, match=r"tfidf_probe.*pika train"):
        load_probe(folder, verify=False)
