"""`pika train` on the nano pool's rollouts."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from offline.label import load_probes, predict
from offline.train import main
from probes.artifact import load_artifact
from probes.base import ProbeError
from probes.engine.local import LocalEngine
from probes.fingerprint import fingerprint
from server.config import load
from tests.support.hub import running
from tests.support.probes import NANO_POOL
from tests.support.train import ARMS, POOL, PROBLEMS, of, some_rollouts, success, train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rollouts() -> pd.DataFrame:
    return some_rollouts()


def test_probes_of_all_arms(rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(rollouts, tmp_path) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])["arms"]
    assert list(result) == list(ARMS)
    for arm in ARMS:
        artifact = load_artifact(tmp_path / "probes" / arm)
        card = artifact.card
        assert artifact.pass_.probe_model == str(NANO_POOL / "nano-small")
        assert not card.pass_.probe_model.startswith("/")
        assert card.target.arm == card.target.model == arm
        assert (card.target.k, card.target.temperature, card.target.max_tokens) == (8, 0.7, 64)
        [metrics] = card.metrics
        assert (metrics.split, metrics.n) == ("test", PROBLEMS["test"])
        assert metrics.auroc.low < metrics.auroc.value < metrics.auroc.high
        assert metrics.auroc.value > card.baselines["tfidf"].auroc.value
        assert result[arm]["auroc"] == metrics.auroc.value
        rows = rollouts[(rollouts["arm"] == arm) & (rollouts["split"] == "train")]
        assert card.mean_tokens.output == pytest.approx(np.concatenate(rows["output_tokens"].to_list()).mean())
        assert card.mean_tokens.input == pytest.approx(rows["input_tokens"].mean())
    assert result["nano-small"]["beats_length"]


@pytest.mark.parametrize("label", ["success_rate", "majority_vote_is_correct", "sample_is_correct"])
def test_a_repeated_run_gives_the_same_probes(label: str, rollouts: pd.DataFrame, tmp_path: Path) -> None:
    options = ("--layers", "1..2", "--positions", "-2..-1", "--arms", "nano-small,nano-large", "--label", label)
    weights = []
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        assert train(rollouts, tmp_path / run, *options) == 0
        probes = [load_artifact(tmp_path / run / "probes" / arm) for arm in ("nano-small", "nano-large")]
        weights.append([probe.probe.tensors()["weight"] for probe in probes])
        for probe in probes:
            assert probe.card.label == probe.card.label_type == label
            assert probe.card.training["layers"] == [1, 2]
            assert probe.card.training["positions"] == [-2, -1]
    np.testing.assert_allclose(weights[0], weights[1], atol=1e-6)


@pytest.mark.timeout(900)  # the whole of the documented training, a minute on two idle cores
def test_the_nano_pools_probes_come_from_its_rollouts(tmp_path: Path) -> None:
    """Trained anew by the documented command, they predict the same."""
    settings = load(POOL)
    card = load_artifact(NANO_POOL / "probes/nano-small").card
    assert card.pass_ is not None
    options = ["--data", str(NANO_POOL / "rollouts.parquet"), "--label", card.label, "--out", str(tmp_path / "probes")]
    options += ["--probe-model", str(NANO_POOL / Path(card.pass_.probe_model).name), "--cache", str(tmp_path / "cache")]
    assert main([str(POOL), "--kind", card.kind, "--next-token", *options]) == 0
    arms = {arm: settings.arms[arm].model_copy(update={"probe": str(tmp_path / "probes" / arm)}) for arm in ARMS}
    problems = pd.read_parquet(NANO_POOL / "rollouts.parquet").query("split == 'test' and arm == 'nano-small'")
    texts = problems["problem"].head(300).to_list()
    anew = settings.model_copy(update={"arms": arms})
    stored, again = success(settings, texts), success(anew, texts)
    # Equal where they were made. A processor that rounds otherwise (AVX2, say) moves a network's training a little.
    assert np.abs(again - stored).mean() < 0.02
    for arm in ARMS:
        new, old = (
            load_artifact(folder / arm).card.metrics[-1] for folder in (tmp_path / "probes", NANO_POOL / "probes")
        )
        assert new.auroc.value == pytest.approx(old.auroc.value, abs=0.005)


def test_one_arm_more_needs_no_new_pass_and_leaves_the_others_alone(
    rollouts: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def content() -> dict[str, bytes]:
        files = (tmp_path / "probes").rglob("*.*")
        return {str(file.relative_to(tmp_path / "probes")): file.read_bytes() for file in files}

    assert train(rollouts, tmp_path) == 0
    before = content()
    (tmp_path / "probes/nano-medium").rename(tmp_path / "removed")

    def no_pass(*_: object) -> None:
        raise AssertionError("the probe model was loaded again")

    monkeypatch.setattr("offline.activations.ProbeModel", no_pass)
    assert train(rollouts, tmp_path, "--arms", "nano-medium") == 0
    after = content()
    assert after.keys() == before.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"nano-medium/config.json"}  # which says when and by which command it was made
    cards = [json.loads(files["nano-medium/config.json"]) for files in (before, after)]
    commands = [one["training"].pop("command") for one in cards]
    assert commands[1] == f"{commands[0]} --arms nano-medium"
    assert {key for key in cards[0] if cards[0][key] != cards[1][key]} <= {"exported_at"}


def test_an_arm_whose_answers_vary_in_length_gets_an_output_token_head(rollouts: pd.DataFrame, tmp_path: Path) -> None:
    options = ("--arms", "nano-small,nano-large", "--layers", "4", "--positions", "-2")
    assert train(rollouts, tmp_path, *options, model="nano-medium") == 0
    card = load_artifact(tmp_path / "probes/nano-large").card
    assert card.output_tokens is not None
    assert card.output_tokens.log_rmse < 0.8 * card.output_tokens.log_rmse_of_mean
    problems = rollouts[of("nano-large", "test")(rollouts)]
    pool = load(POOL)
    arm = pool.arms["nano-large"].model_copy(update={"probe": str(tmp_path / "probes/nano-large")})
    pool = pool.model_copy(update={"arms": {"nano-large": arm}})
    predicted = predict(pool, load_probes(pool), problems["problem"].to_list()).output_tokens[:, 0]
    actual = problems["output_tokens"].map(np.mean).to_numpy()
    assert np.corrcoef(predicted, actual)[0, 1] > 0.7
    assert predicted.mean() == pytest.approx(actual.mean(), rel=0.05)


def test_a_model_from_the_hub_is_known_again_in_a_folder(
    rollouts: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--layers", "1..1", "--positions", "-1..-1", "--arms", "nano-large", "--probe-model", "owner/nano")
    with running() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        files = {file.name: file.read_bytes() for file in (NANO_POOL / "nano-small").iterdir()}
        hub.repository("owner/nano").commit(files)
        assert train(rollouts, tmp_path, *options) == 0
    folder = tmp_path / "probes/nano-large"
    served = load_artifact(folder, probe_models={"owner/nano": str(NANO_POOL / "nano-small")})
    assert served.card.probe_model_fingerprint == fingerprint(NANO_POOL / "nano-small")
    with pytest.raises(ProbeError, match=r"configuration or weights in .*nano-medium are not those of owner/nano"):
        load_artifact(folder, probe_models={"owner/nano": str(NANO_POOL / "nano-medium")})


def test_a_score_that_is_not_defined_is_not_written(rollouts: pd.DataFrame, tmp_path: Path) -> None:
    """To a probe of words, texts of unknown ones are all the same: no rank correlation."""
    data = rollouts.copy()
    test = data["split"] == "test"
    data.loc[test, "problem"] = "zzz" + data.loc[test, "problem_id"].str.replace("-", "z")
    assert train(data, tmp_path, "--kind", "tfidf", "--arms", "nano-large") == 0
    assert load_artifact(tmp_path / "probes/nano-large").card.test_score is None


def test_ids_may_recur_in_other_splits(rollouts: pd.DataFrame, tmp_path: Path) -> None:
    options = ("--layers", "1", "--positions", "-1")
    weights = []
    for run in ("own ids", "equal ids"):
        (tmp_path / run).mkdir()
        data = (
            rollouts
            if run == "own ids"
            else rollouts.assign(problem_id=rollouts["problem_id"].str.replace(r"^[a-z]+-", "", regex=True))
        )
        assert train(data, tmp_path / run, *options) == 0
        weights.append([load_artifact(tmp_path / run / "probes" / arm).probe.tensors()["weight"] for arm in ARMS])
    np.testing.assert_array_equal(weights[0], weights[1])


@pytest.mark.parametrize("label", ["success_rate", "majority_vote_is_correct"])
def test_scores_are_of_the_label_that_was_fitted(label: str, rollouts: pd.DataFrame, tmp_path: Path) -> None:
    options = ("--layers", "1", "--positions", "-1", "--arms", "nano-medium,nano-medium", "--label", label)
    assert train(rollouts, tmp_path, *options) == 0
    artifact = load_artifact(tmp_path / "probes/nano-medium")
    engine, card = LocalEngine([artifact], "cpu"), artifact.card
    for split, score in (("validation", card.best_val_score), ("test", card.test_score)):
        rows = rollouts[of("nano-medium", split)(rollouts)]
        raw = engine.raw(engine.render(rows["problem"].to_list()))[:, 0]
        found = spearmanr(raw, rows[label]).statistic if label == "success_rate" else roc_auc_score(rows[label], raw)
        assert score == pytest.approx(found, abs=1e-4)


def test_labels_know_what_rollouts_showed(rollouts: pd.DataFrame) -> None:
    test = rollouts[rollouts["split"] == "test"]
    problems = test.loc[test["arm"] == ARMS[0], "problem"].to_list()
    settings = load(POOL)
    constant = settings.arms["nano-small"].model_copy(update={"probe": None, "success_probability": 0.25})
    settings = settings.model_copy(update={"arms": {**settings.arms, "nano-small": constant}})
    found = success(settings, problems)
    assert (found[:, 0] == 0.25).all()
    for column, arm in ((1, "nano-medium"), (2, "nano-large")):
        rate = test.loc[test["arm"] == arm, "success_rate"].to_numpy()
        assert abs(found[:, column].mean() - rate.mean()) < 0.08
        assert np.corrcoef(found[:, column], rate)[0, 1] > 0.4
    assert success(settings, []).shape == (0, 3)
