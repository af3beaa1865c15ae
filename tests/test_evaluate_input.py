"""What `pika evaluate` is given: which files and splits choose and which judge, and what it does not take."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from offline.evaluation.command import main
from tests.support.colours import QUICK, rollouts, run
from tests.test_tune import write_pool


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rollouts().to_parquet(tmp_path / "rollouts.parquet")
    return tmp_path / "rollouts.parquet"


def _leak(frame: pd.DataFrame) -> pd.DataFrame:
    text = frame.loc[frame["problem_id"] == "validation-0", "problem"].iloc[0]
    frame.loc[frame["problem_id"] == "test-1", "problem"] = f"  {text} "
    return frame


def _mixed_k(frame: pd.DataFrame) -> pd.DataFrame:
    row = frame.index[(frame["problem_id"] == "test-0") & (frame["arm"] == "large")][0]
    frame.at[row, "k"] = 2
    frame.at[row, "correct"] = [True, True]
    frame.at[row, "success_rate"] = 1.0
    return frame


def _nan(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(success_rate=frame["success_rate"].where(frame["problem_id"] != "test-0"))


def _no_tokens(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(output_tokens=[[] for _ in range(len(frame))])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns="correct"), "lacks the columns correct; `pika rollouts` writes them"),
        (lambda frame: frame[frame["split"] != "test"], "no rows of split 'test'; its splits: train, validation"),
        (lambda frame: frame[frame["arm"] != "large"], "arm 'large' lacks"),
        (_leak, "leakage: 1 test problems stand in validation too"),
        (_mixed_k, "arm 'large' has 2 and 4 answers per problem: sample all problems of a split alike"),
        (_nan, "success_rate must lie in [0, 1]"),
        (_no_tokens, "rows without 4 values in output_tokens"),
        (lambda frame: frame.assign(success_rate=0.5), "success_rate is not the mean of correct"),
        (lambda frame: pd.concat([frame, frame.tail(1)]), "1 rows stand twice"),
    ],
)
def test_bad_rollouts_are_one_clear_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[pd.DataFrame], pd.DataFrame],
    message: str,
) -> None:
    change(rollouts(10)).to_parquet(tmp_path / "rollouts.parquet")
    words = ("--data", tmp_path / "rollouts.parquet", "--out", tmp_path / "out")
    code, _, err = run(capsys, write_pool(tmp_path), *words)
    assert code == 2
    assert err.startswith("pika evaluate: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "utility,fancy"], "'fancy' is no policy here: choose of utility,"),
        (["--target", "best"], "'best' is no target"),
        (["--draws", "3"], "'3' draws make no interval"),
    ],
)
def test_words_that_are_none(capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["pool.yaml", "--data", "rollouts.parquet", *words])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_pool_in_which_nothing_costs_has_nothing_to_save(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = write_pool(tmp_path).read_text().replace("{input: 0.5, output: 2.0}", "{input: 0, output: 0}")
    (tmp_path / "free.yaml").write_text(text)
    code, _, err = run(capsys, tmp_path / "free.yaml", "--data", file, "--out", tmp_path / "out", *QUICK)
    assert code == 2
    assert "always large costs nothing by the configured prices" in err


def test_test_problems_cannot_choose_knobs(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(capsys, write_pool(tmp_path), "--data", file, "--validation-split", "test")
    assert code == 2
    assert "cannot both choose knobs and judge them" in err


def test_knobs_from_another_file(tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fresh = rollouts(40, seed=9)
    fresh = fresh[fresh["split"] == "test"].assign(problem=lambda frame: "fresh " + frame["problem"])
    fresh.to_parquet(tmp_path / "fresh.parquet")
    words = ("--data", tmp_path / "fresh.parquet", "--validation-data", file, "--out", tmp_path / "out", *QUICK)
    assert run(capsys, write_pool(tmp_path), *words)[0] == 0
    found = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert found["data"]["problems"] == {"validation": 120, "test": 40}
    assert set(found["provenance"]["inputs"]) == {"pool.yaml", "fresh.parquet", "rollouts.parquet"}
    # What a split is called in its own file does not matter.
    other = rollouts(20, seed=9).query("split == 'test'")
    other.assign(problem="other " + other["problem"]).to_parquet(tmp_path / "other.parquet")
    renamed = ("--validation-data", tmp_path / "other.parquet", "--validation-split", "test", *QUICK)
    code, _, err = run(capsys, write_pool(tmp_path), "--data", file, *renamed, "--out", tmp_path / "renamed")
    assert code == 0, err
    found = json.loads((tmp_path / "renamed/evaluation.json").read_text())
    assert found["data"]["problems"] == {"validation": 20, "test": 60}
    # The same problems in both files are leakage too.
    code, _, err = run(capsys, write_pool(tmp_path), "--data", file, "--test-split", "train", "--validation-data", file)
    assert code == 2
    assert "leakage: 120 test problems stand in train too" in err


def test_a_folder_that_cannot_be_written_says_so(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    words = ("--data", file, "--out", tmp_path / "taken", *QUICK)
    code, _, err = run(capsys, write_pool(tmp_path), *words)
    assert code == 1
    assert "choose another --out" in err
