"""What `pika train` refuses, of data and of options."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.probes import NANO_POOL
from tests.support.train import QUICK, of, some_rollouts, train


@pytest.fixture(scope="module")
def rollouts() -> pd.DataFrame:
    return some_rollouts()


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "nano-tiny"), "has no model 'nano-tiny'; it has nano-small, nano-medium, nano-large"),
        (("--data", "nowhere.parquet"), "there is no file nowhere.parquet: name one, or a dataset on the Hub as"),
        (("--test-on", "nowhere.parquet"), "there is no file nowhere.parquet: name one"),
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
        (("--kind", "mlp", *QUICK, "--layer-rule", "one-se"), "is for kinds that read one layer of several, not"),
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
