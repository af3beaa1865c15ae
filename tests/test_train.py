"""`pika train` on the nano pool's rollouts."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from offline.label import load_probes, predict
from offline.rollout_store import SCHEMA, write
from offline.train import main
from probes.artifact import load_artifact
from probes.base import FloatArray, ProbeError
from probes.engine.base import Prompt
from probes.engine.local import LocalEngine
from probes.fingerprint import fingerprint
from server.config import Settings, load
from tests.support.hub import running
from tests.support.probes import NANO_POOL

POOL = NANO_POOL / "pool.yaml"
ARMS = ("nano-small", "nano-medium", "nano-large")
PROBLEMS = {"train": 400, "validation": 150, "test": 150}


@pytest.fixture(scope="module")
def rollouts() -> pd.DataFrame:
    """Some of the nano pool's rollouts: the first problems of each split, every arm."""
    whole = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    parts = [
        whole[(whole["arm"] == arm) & (whole["split"] == split)].head(n)
        for arm in ARMS
        for split, n in PROBLEMS.items()
    ]
    return pd.concat(parts)


def success(settings: Settings, problems: list[str]) -> FloatArray:
    return predict(settings, load_probes(settings), problems).success


def train(data: pd.DataFrame, folder: Path, *options: str, model: str = "nano-small") -> int:
    data.to_parquet(folder / "rollouts.parquet")
    required = [str(POOL), "--data", str(folder / "rollouts.parquet"), "--out", str(folder / "probes")]
    required += ["--cache", str(folder / "cache")]
    return main([*required, "--probe-model", str(NANO_POOL / model), *options])


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


def of(arm: str, split: str) -> Callable[[pd.DataFrame], Any]:
    return lambda data: (data["arm"] == arm) & (data["split"] == split)


def change(rows: Callable[[pd.DataFrame], Any], **values: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def changed(data: pd.DataFrame) -> pd.DataFrame:
        data = data.copy()
        for column, value in values.items():
            data.loc[rows(data), column] = value
        return data

    return changed


def repeat_in_test(data: pd.DataFrame) -> pd.DataFrame:
    text = data.loc[data["split"] == "train", "problem"].iloc[0]
    first = data.loc[data["split"] == "test", "problem"].iloc[0]
    return data.assign(problem=data["problem"].replace(first, text))


FLAWS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "column": (
        lambda data: data.drop(columns=["k", "problem"]),
        "lacks the columns problem, k; `pika rollouts` writes",
    ),
    "arm": (lambda data: data[data["arm"] != "nano-large"], "has no rollouts of arm 'nano-large'; it has nano-medium"),
    "split": (lambda data: data[data["split"] != "validation"], "has no validation problems: run `pika rollouts` with"),
    "rows": (
        lambda data: data.drop(index=data[of("nano-small", "test")(data)].index[:3]),
        "'nano-small' lacks 3 of 700",
    ),
    "twice": (lambda data: pd.concat([data, data.head(2)]), "2 rows stand twice, such as 'nano-small' on"),
    "constant test": (
        change(of("nano-large", "test"), success_rate=1.0, majority_vote_is_correct=True),
        "the success_rate of arm 'nano-large' is 1 on every test problem, so there is nothing to measure",
    ),
    "constant": (
        change(of("nano-medium", "train"), success_rate=1.0),
        "the success_rate of arm 'nano-medium' is 1 on every train problem",
    ),
    "two problems": (
        change(lambda data: data["problem_id"] == data["problem_id"].iloc[1], problem_id="train-0-0"),
        "'train-0-0' in train stands for several problems: give each its own id",
    ),
    "two splits": (repeat_in_test, "one problem stands under several ids or in several splits"),
    "k": (change(of("nano-small", "test"), k=4), "arm 'nano-small' mixes k 4, 8"),
    "NaN": (change(of("nano-small", "test"), success_rate=np.nan), "success_rate is missing in some rows: it must"),
    "no temperature": (change(of("nano-small", "test"), temperature=np.nan), "temperature is missing in some rows"),
    "all wrong": (
        change(lambda data: data["arm"] != "nano-small", success_rate=0.0, majority_vote_is_correct=False),
        "or give the arm a success_probability instead of a probe and train the others with --arms nano-small",
    ),
    "rate": (change(of("nano-small", "test"), success_rate=1.5), "success_rate must lie in [0, 1]"),
    "benchmark": (change(of("nano-small", "test"), benchmark="math"), "mixes benchmarks"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_flaws_of_the_data_are_named(
    flaw: str, rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, message = FLAWS[flaw]
    assert train(make(rollouts), tmp_path, "--layers", "1", "--positions", "-1") == 2
    # Progress bars precede it.
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "probes").exists()


def without_tokenizer(folder: Path) -> list[str]:
    shutil.copytree(NANO_POOL / "nano-small", folder / "model")
    (folder / "model/tokenizer.json").unlink()
    return ["--probe-model", str(folder / "model")]


def test_a_probe_model_without_tokenizer_is_named(
    rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(rollouts, tmp_path, *without_tokenizer(tmp_path)) == 2
    assert "tokenizer.json" in capsys.readouterr().err.splitlines()[-1]


def weights(folder: Path, arms: Sequence[str] = ("nano-large",)) -> list[Any]:
    return [load_artifact(folder / arm).probe.tensors()["weight"] for arm in arms]


QUICK = ("--layers", "1", "--positions", "-1")


def test_options_as_the_research_code_calls_them(
    rollouts: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the Hub, of one of two ways of sampling; the same probe as by our names."""
    otherwise = rollouts.assign(temperature=1.0, success_rate=lambda data: 1 - data["success_rate"])
    both = pd.concat([rollouts, otherwise])
    schema = pa.schema([field for field in SCHEMA if field.name in both.columns])
    write(tmp_path / "both.parquet", pa.Table.from_pandas(both, schema=schema, preserve_index=False))
    assert train(rollouts, tmp_path, *QUICK, "--arms", "nano-large") == 0
    expected = weights(tmp_path / "probes")
    command = [str(POOL), "--probe", "linear_eoi_probe", "--model", "nano-large", "--k", "8", "--max_len", "64", *QUICK]
    command += ["--probe-model", str(NANO_POOL / "nano-small"), "--out", str(tmp_path / "again")]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with running() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        hub.repository("ann/sums", "dataset").commit({"data/test.parquet": (tmp_path / "both.parquet").read_bytes()})
        dataset = ["--dataset", "ann/sums"]
        assert main([*command, *dataset, "--temperature", "0.7"]) == 0
        assert main([*command, *dataset, "--temperature", "0.5"]) == 2
    message = "has no rollouts of arm 'nano-large' with k 8, temperature 0.5, max_tokens 64; it has some with "
    assert message in capsys.readouterr().err
    np.testing.assert_array_equal(weights(tmp_path / "again"), expected)


def test_options_from_a_file(rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("{kind: mlp, layers: 1, positions: -2..-1, next_token: true, arms: [nano-large], seed: 3}")
    assert train(rollouts, tmp_path, "--options", str(file), "--kind", "linear_eoi", "--arms", "nano-small") == 2
    assert "--next-token is for --kind mlp" in capsys.readouterr().err
    assert train(rollouts, tmp_path, "--options", str(file), "--positions", "-1") == 0
    [card] = [load_artifact(folder).card for folder in (tmp_path / "probes").iterdir()]
    assert (card.kind, card.target.arm, card.training["seed"]) == ("mlp", "nano-large", 3)
    assert card.training["positions"] == [-1]
    file.write_text("{knd: mlp}")
    assert train(rollouts, tmp_path, "--options", str(file)) == 2
    assert f"{file}: unknown key 'knd': did you mean 'kind'?" in capsys.readouterr().err
    file.write_text("{next-token: mlp}")
    assert train(rollouts, tmp_path, "--options", str(file)) == 2
    assert "next-token takes true or false, not 'mlp'" in capsys.readouterr().err


def test_tested_on_other_problems_too(
    rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    other = whole[(whole["split"] == "test") & ~whole["problem_id"].isin(rollouts["problem_id"])]
    other.to_parquet(tmp_path / "fresh.parquet")
    options = (*QUICK, "--test-on", str(tmp_path / "fresh.parquet"), "--arms", "nano-small,nano-large")
    assert train(rollouts, tmp_path, *options) == 0
    out = capsys.readouterr().out
    assert "Trained on running_total, tested on others' problems" in out
    result = json.loads(out.splitlines()[-1])["arms"]
    for arm in ("nano-small", "nano-large"):
        card = load_artifact(tmp_path / "probes" / arm).card
        assert [metrics.split for metrics in card.metrics] == ["test of fresh", "test"]
        figures = result[arm]["transfer"]["fresh"]
        rows = other[other["arm"] == arm]
        assert figures["n"] == len(rows) == 1350
        pool = load(POOL)
        arms = {arm: pool.arms[arm].model_copy(update={"probe": str(tmp_path / "probes" / arm)})}
        found = success(pool.model_copy(update={"arms": arms}), rows["problem"].to_list())[:, 0]
        rate = rows["success_rate"].to_numpy()
        correct = np.repeat([1, 0], len(rows)), np.concatenate([rate, 1 - rate])
        expected = roc_auc_score(correct[0], np.tile(found, 2), sample_weight=correct[1])
        assert figures["auroc"]["value"] == pytest.approx(expected, abs=1e-6)
        assert figures["auroc"]["low"] < expected < figures["auroc"]["high"]
    leaking = pd.concat([other, rollouts[rollouts["split"] == "train"].head(400).assign(split="test")])
    leaking[leaking["arm"] == "nano-small"].to_parquet(tmp_path / "fresh.parquet")
    assert train(rollouts, tmp_path, *options[:-1], "nano-small") == 2
    assert "400 of its test problems train or choose the probes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nano-tiny"), "has no model 'nano-tiny'; it has nano-small, nano-medium, nano-large"),
        (("--data", "nowhere.parquet"), "there is no file nowhere.parquet: name one, or a dataset on the Hub as"),
        (("--test-on", "nowhere.parquet"), "cannot read nowhere.parquet as parquet"),
        (("--options", "nowhere.yaml"), "cannot read nowhere.yaml"),
        (("--arms", "nano-tiny"), "has no arm 'nano-tiny'; it has nano-small, nano-medium, nano-large"),
        (("--layers", "3"), "has layers 0, its embeddings, to 2"),
        (("--layers", "-1"), "--layers -1..-1: "),
        (("--layers", "-2..1"), "--layers -2..1: "),
        (("--positions", "-99"), "down to -"),
        (("--positions", "0"), "they count from the prompt's end"),
        (("--layers", "0..999999"), "has layers 0, its embeddings, to 2"),
        (("--kind", "tfidf", "--layers", "1"), "--layers: a tfidf probe reads no activations"),
        (("--kind", "length", "--positions", "-1"), "--positions: a length probe reads no activations"),
        (("--probe-model", "./nowhere"), "no folder at nowhere; give a folder or a Hub id"),
    ],
)
def test_wrong_options_are_named(
    options: tuple[str, ...], message: str, rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(rollouts, tmp_path, *options) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("layers", ["x", "3..1", "1,", "", "0..9999999999", "-9999999999..1"])
def test_malformed_ranges_are_refused(layers: str, rollouts: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as refused:
        train(rollouts, tmp_path, "--layers", layers)
    assert refused.value.code == 2


def test_too_few_validation_problems_for_statistics_are_said(
    rollouts: pd.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = rollouts.groupby(["arm", "split"], sort=False).head(99)
    assert train(few, tmp_path, "--layers", "1", "--positions", "-1", "--arms", "nano-small") == 0
    assert "no activation statistics, which need 100 validation problems" in capsys.readouterr().err
    artifact = load_artifact(tmp_path / "probes/nano-small")
    assert artifact.card.statistics is None
    assert artifact.card.d_model == 96
    assert np.isnan(LocalEngine([artifact], "cpu").score([Prompt(((5, 6, 7),), "")]).activation_percentile).all()


def test_an_arm_that_is_a_constant_needs_no_probe(rollouts: pd.DataFrame, tmp_path: Path) -> None:
    config = yaml.safe_load(POOL.read_text())
    for name, model in config["models"].items():
        model["model"] = str(NANO_POOL / name)
    del config["arms"]["nano-large"]["probe"]
    config["arms"]["nano-large"] |= {"success_probability": 0.9, "mean_tokens": {"input": 40, "output": 35}}
    pool = tmp_path / "pool.yaml"
    pool.write_text(yaml.safe_dump(config))
    write(tmp_path / "rollouts.parquet", pa.Table.from_pandas(rollouts, preserve_index=False))
    data = ["--data", str(tmp_path / "rollouts.parquet"), "--out", str(tmp_path / "probes")]
    assert main([str(pool), *data, "--kind", "length", "--probe-model", str(NANO_POOL / "nano-small")]) == 0
    assert {folder.name for folder in (tmp_path / "probes").iterdir()} == {"nano-small", "nano-medium"}


def test_a_card_tells_no_folder_of_this_machine(rollouts: pd.DataFrame, tmp_path: Path) -> None:
    assert train(rollouts, tmp_path, "--kind", "length") == 0
    text = (tmp_path / "probes/nano-small/config.json").read_text()
    assert "pika train pool.yaml --data rollouts.parquet" in text
    assert str(tmp_path) not in text
