"""What `pika train` is told and where from; what else it tests on, and what it leaves out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from sklearn.metrics import roc_auc_score

from offline.rollout_store import SCHEMA, write
from offline.train import main
from probes.artifact import load_artifact
from probes.engine.base import Prompt
from probes.engine.local import LocalEngine
from server.config import load
from tests.support.hub import running
from tests.support.probes import NANO_POOL
from tests.support.train import POOL, QUICK, some_rollouts, success, train


@pytest.fixture(scope="module")
def rollouts() -> pd.DataFrame:
    return some_rollouts()


def weights(folder: Path, arms: Sequence[str] = ("nano-large",)) -> list[Any]:
    return [load_artifact(folder / arm).probe.tensors()["weight"] for arm in arms]


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


@pytest.mark.parametrize(
    ("options", "label"),
    [
        (("--kind", "linear_eoi", "--positions", "-1"), "success_rate"),
        (("--kind", "linear_eoi", "--positions", "-1"), "majority_vote_is_correct"),
        (("--kind", "attn"), "success_rate"),
    ],
    ids=["regression", "classification", "all-tokens"],
)
def test_one_standard_error_takes_the_shallower_layer(
    options: tuple[str, ...], label: str, rollouts: pd.DataFrame, tmp_path: Path
) -> None:
    """The last layer ranks 150 problems better, but by less than chance moves it."""
    layers = []
    for rule in ((), ("--layer-rule", "one-se")):
        assert train(rollouts, tmp_path, *options, "--label", label, "--arms", "nano-medium", *rule) == 0
        layers.append(load_artifact(tmp_path / "probes/nano-medium").card.best_layer_idx)
    assert layers == [2, 1]


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
