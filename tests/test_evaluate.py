from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from offline.evaluate import DataError, mean_interval, paired_bootstrap, read_outcomes

ARMS = ["small", "large"]


def rollouts() -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for split, ids in (("validation", ["b", "a"]), ("test", ["c"])):
        for number, problem_id in enumerate(ids):
            for arm, rate in (("large", 0.75), ("small", 0.25 + number / 4)):
                row = {"arm": arm, "split": split, "problem_id": problem_id, "problem": f"text of {problem_id}"}
                rows.append(row | {"success_rate": rate, "input_tokens": 10 + number})
    return pd.DataFrame(rows)


def write(tmp_path: Path, frame: pd.DataFrame) -> Path:
    frame.to_parquet(tmp_path / "rollouts.parquet")
    return tmp_path / "rollouts.parquet"


def test_outcomes_of_a_split_in_the_order_of_the_arms(tmp_path: Path) -> None:
    outcomes = read_outcomes(write(tmp_path, rollouts()), "validation", ARMS)
    assert outcomes.problem_ids == ["b", "a"]
    assert outcomes.problems == ["text of b", "text of a"]
    np.testing.assert_array_equal(outcomes.success_rate, [[0.25, 0.75], [0.5, 0.75]])
    np.testing.assert_array_equal(outcomes.input_tokens, [[10, 10], [11, 11]])
    assert len(outcomes.sha256) == 64


def test_arms_that_the_pool_does_not_have_are_left_out(tmp_path: Path) -> None:
    outcomes = read_outcomes(write(tmp_path, rollouts()), "validation", ["large"])
    np.testing.assert_array_equal(outcomes.success_rate, [[0.75], [0.75]])


def _twice(frame: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([frame, frame.head(1)])


def _other_text(frame: pd.DataFrame) -> pd.DataFrame:
    frame.loc[0, "problem"] = "another"
    return frame


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frame: frame.drop(columns=["success_rate", "problem"]), "lacks the columns problem, success_rate"),
        (lambda frame: frame[frame["split"] == "test"], "no rows of split 'validation'; its splits: test"),
        (lambda frame: frame.replace({"arm": {"small": "tiny"}}), "arm 'small' lacks 2 of the 2 validation problems"),
        (lambda frame: frame.assign(arm="tiny"), "no validation rows of the arms small, large; it has tiny"),
        (lambda frame: frame[frame["arm"] == "large"], "arm 'small' lacks 2 of the 2 validation problems, such as 'a'"),
        (lambda frame: frame.drop(index=1), "arm 'small' lacks 1 of the 2 validation problems, such as 'b'"),
        (_twice, "1 rows stand twice, such as 'large' on 'b'"),
        (_other_text, "a problem_id stands for different problems"),
        (lambda frame: frame.replace({"success_rate": {0.25: np.nan}}), r"success_rate must lie in \[0, 1\]"),
        (lambda frame: frame.replace({"success_rate": {0.25: 1.5}}), r"success_rate must lie in \[0, 1\]"),
        (lambda frame: frame.replace({"input_tokens": {10: -1}}), "input_tokens be counts"),
    ],
)
def test_rollouts_that_cannot_be_used_say_why(tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_outcomes(write(tmp_path, change(rollouts())), "validation", ARMS)


def test_files_that_are_no_parquet_say_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("problem_id,split\n")
    for name, message in (("text", "cannot read"), ("absent", "there is no file")):
        with pytest.raises(DataError, match=message):
            read_outcomes(tmp_path / name, "validation", ARMS)


def test_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(3).normal(2, 1, 900)
    low, high = mean_interval(values, seed=1)
    np.testing.assert_allclose([low, high], values.mean() + np.array([-1.96, 1.96]) * values.std() / 30, atol=0.004)
    assert (low, high) == mean_interval(values, seed=1)


def test_many_problems_are_drawn_in_chunks() -> None:
    values = np.random.default_rng(3).normal(2, 1, 50_000)
    low, high = mean_interval(values, draws=200)
    assert low < values.mean() < high


def test_interval_of_a_constant_is_a_point() -> None:
    assert mean_interval([0.25] * 7) == (0.25, 0.25)


def test_pairs_cancel_what_problems_have_in_common() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    low, high = paired_bootstrap(hard + 0.01, hard)
    assert low == pytest.approx(0.01)
    assert high == pytest.approx(0.01)
    a, b = rng.random(400) < 0.9, rng.random(400) < 0.8
    low, high = paired_bootstrap(a, b)
    assert low < a.mean() - b.mean() < high


@pytest.mark.parametrize(("a", "b"), [([1, 0], [1]), ([], []), ([np.nan], [1])])
def test_what_cannot_be_compared_is_an_error(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="bootstrap"):
        paired_bootstrap(a, b)
