"""What `pika data convert` refuses, and what it says of it."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from offline.pool_file import arm_names
from server.__main__ import main
from tests.support.convert import PRICES, answers, fails, run, write


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """As a limit on files' sizes shows it."""
    write(tmp_path / "answers.parquet", answers(400))
    command = [sys.executable, "-m", "server", "data", "convert", "answers.parquet", "--out", "out.parquet", *PRICES]
    done = subprocess.run(
        ["bash", "-c", f"ulimit -f 2; exec {shlex.join(command)}"],
        cwd=tmp_path,
        # No bytecode, which would be cut off too, and found by others.
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "pika data convert: cannot write out.parquet: File too large; make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["answers.parquet"]


def test_problems_that_a_model_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = answers()[:-1]
    rows[0] = {**rows[0], "is_correct": None}
    file, out = write(tmp_path / "answers.jsonl", rows), tmp_path / "out.parquet"
    message = fails(capsys, file, "--out", out, *PRICES)
    assert "2 of 60 problems lack an arm" in message
    assert "--drop-incomplete leaves them out" in message
    assert not out.exists()
    summary, _ = run(capsys, file, "--out", out, "--drop-incomplete", *PRICES)
    assert (summary["incomplete_dropped"], summary["rows"]) == (2, 116)
    assert "1 answers without a verdict were left out." in summary["notes"]


def change(**fields: Any) -> list[dict[str, Any]]:
    return [{**row, **fields} for row in answers()]


def without(name: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != name} for row in answers()]


@pytest.mark.parametrize(
    ("rows", "words", "message"),
    [
        (without("problem"), PRICES, "no column holds the problem: name it with --column problem=NAME"),
        (without("is_correct"), PRICES, "no column holds the correct: name it with --column correct=NAME"),
        (without("model"), ["--column", "correct=none"], "there is a price of"),
        (change(is_correct="perhaps"), PRICES, "holds 'perhaps', which says neither right nor wrong"),
        (change(is_correct=float("inf")), PRICES, "holds inf"),
        (change(is_correct=4.5), PRICES, "holds the score 4.5: say with --threshold"),
        (change(is_correct=float("nan")), PRICES, "has at most 0 answers with a verdict"),
        (change(problem=""), PRICES, "column 'problem' is empty in row 1"),
        (change(model=None), PRICES, "column 'model' is empty in row 1"),
        (change(problem=[{"role": "user"}]), PRICES, "column 'problem' holds a list in row 1: make it text"),
        (change(output_tokens=-1), PRICES, "column 'output_tokens' holds '-1': it must be a number of tokens"),
        (change(idx=7), PRICES, "idx 7 stands for two problems: name another column with --column id=NAME"),
        (answers(), [], "no price of owner/small-1b, owner/large-70b: give --price owner/small-1b=IN/OUT"),
        (answers(), [*PRICES, "--price", "gpt=1/1"], "there is a price of 'gpt', but no such model"),
        (answers(), ["--price", "owner/small-1b"], "write --price MODEL=IN/OUT"),
        (answers(), ["--price", "owner/small-1b=nan/1"], "write --price MODEL=IN/OUT"),
        (answers(), [*PRICES, "--column", "verdict=is_correct"], "there is no 'verdict'; one of problem, id"),
        (answers(), [*PRICES, "--column", "correct=passed"], "no such column; the columns are idx, topic"),
        (answers(), [*PRICES, "--models", "gpt-4"], "--models: no column 'gpt-4'"),
        (answers(), [*PRICES, "--keep-splits"], "no column holds the split"),
        (answers(), [*PRICES, "--split", "train=.5,test=.5", "--keep-splits"], "give one of them"),
        (answers(), [*PRICES, "--output-tokens", "many"], "write a number of tokens"),
        (answers(3), [*PRICES, "--split", "train=.98,validation=.01,test=.01"], "3 problems leave the split"),
    ],
)  # fmt: skip
def test_bad_input_names_the_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: list[dict[str, Any]], words: Sequence[str], message: str
) -> None:
    file = write(tmp_path / "answers.parquet", rows)
    if message == "there is a price of":  # a wide table, whose only column of verdicts is taken for a model's
        words = [*words, "--price", "other=1/1"]
    assert message in fails(capsys, file, "--out", tmp_path / "out.parquet", *words)
    assert {path.name for path in tmp_path.iterdir()} == {"answers.parquet"}


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out.parquet")
    assert "cannot read" in fails(capsys, tmp_path / "absent.parquet", *out)
    (tmp_path / "data.pkl").write_bytes(b"\x80")
    assert "must end in .parquet, .jsonl, .json or .csv" in fails(capsys, tmp_path / "data.pkl", *out)
    (tmp_path / "bad.jsonl").write_text("{")
    assert "cannot read" in fails(capsys, tmp_path / "bad.jsonl", *out)
    (tmp_path / "bad.json").write_text('{"a": 1}')
    assert "an array with an object per row" in fails(capsys, tmp_path / "bad.json", *out)
    (tmp_path / "none.csv").write_text("problem,model,correct\n")
    assert "no rows" in fails(capsys, tmp_path / "none.csv", *out)
    file = write(tmp_path / "answers.parquet", answers())
    assert "exists: remove it" in fails(capsys, file, "--out", file, *PRICES)
    assert "whose name ends in .parquet" in fails(capsys, file, "--out", tmp_path / "folder", *PRICES)
    for words in (["--split", "train=.5"], ["--split", "train"], ["--k", "0"]):
        with pytest.raises(SystemExit) as ended:
            main(["data", "convert", str(file), "--out", "o.parquet", *words])
        assert ended.value.code == 2
        assert "train=.6,validation=.2,test=.2" in (err := capsys.readouterr().err) or "no positive whole number" in err


def test_arms_have_names_that_a_pool_may_use() -> None:
    models = ["owner/Model-7B", "a/same", "b/same", "autocoder:7b", "x" * 80]
    names = arm_names(models)
    assert list(names.values()) == ["Model-7B", "a--same", "b--same", "model-autocoder-7b", "x" * 64]
    with pytest.raises(ValueError, match="would both be the arm"):
        arm_names(["a b", "a?b"])
    with pytest.raises(ValueError, match="no letter or digit"):
        arm_names(["???"])
