"""`pika verify`: solutions on record, graded anew and compared with the verdicts on record."""

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.disagreements import Judged, cause
from offline.rollout_store import METADATA
from offline.verify_rollouts import main

ROOT = Path(__file__).parents[1]
NANO = ROOT / "offline/nano_pool/rollouts.parquet"
GSM8K = ROOT.parent / "shared/data/gsm8k_six_models.parquet"

FOREIGN = [
    # model, response, ground truth, recorded, cause
    ("a", "5 + 13 = 18\n#### 18", "18", True, None),
    ("a", "#### 19", "18", False, None),
    ("a", "I cannot say.", "18", True, "no answer found"),
    ("a", "#### -18", "18", True, "sign"),
    ("a", "The answer is 3 of 18", "18", True, "several values"),
    ("b", "#### 19", "18", True, "other answer"),
    ("b", "It is $18.00.", "18", False, "another form"),
    ("b", "6 * 3 = 18.\nSo 18 children fill 3 buses.", "18", False, "right among several"),
    ("b", "It | is `18`", "18", False, "right"),
]


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> dict[str, Any]:
    assert main([str(word) for word in argv]) == 0
    summary: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return summary


def listed(report: Path) -> Counter[tuple[str, str]]:
    """(cause, model) of each disagreement that a report lists."""
    found: Counter[tuple[str, str]] = Counter()
    cause = ""
    for line in report.read_text().splitlines():
        if heading := re.fullmatch(r"## (.+): (\d+)", line):
            cause = heading[1].lower()
        elif row := re.fullmatch(r"\| \d+ \| (\S+) \| `.*", line):
            found[cause, row[1]] += 1
    return found


def test_a_solution_given_up_is_told_from_one_without_an_answer() -> None:
    judged = Judged(0, "a", "9^9^9^9", "18", recorded=True, answer=None, correct=False, gave_up=True)
    assert cause(judged) == "gave up"
    assert cause(replace(judged, gave_up=False)) == "no answer found"


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    names = ("model", "response", "ground_truth", "is_correct")
    rows = [dict(zip(names, row, strict=False)) for row in FOREIGN]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "foreign.parquet")
    return tmp_path / "foreign.parquet"


@pytest.mark.parametrize("verifier", ["numeric", "math"])
def test_gsm8k_verdicts_on_record_are_met(tmp_path: Path, capsys: pytest.CaptureFixture[str], verifier: str) -> None:
    if not GSM8K.exists():
        pytest.skip(f"{GSM8K} is absent")
    file = GSM8K
    if verifier == "math":  # a tenth, for its parser takes a while
        file = tmp_path / "tenth.parquet"
        pq.write_table(pq.read_table(GSM8K).take(list(range(0, 7914, 10))), file)
    report, out = tmp_path / "report.md", tmp_path / "graded.parquet"
    summary = run(capsys, file, "--verifier", verifier, "--report", report, "--out", out)
    assert summary["disagree_of_right"] <= 0.02
    assert summary["disagree_of_all"] <= 0.02

    before, after = pq.read_table(file).to_pandas(), pq.read_table(out).to_pandas()
    differ = before["is_correct"] != after["is_correct"]
    assert summary["disagree_of_all"] == pytest.approx(differ.mean())
    assert summary["disagree_of_right"] == pytest.approx(differ[before["is_correct"]].mean())
    assert listed(report).total() == differ.sum()
    by_model: Counter[str] = Counter()
    for (_, model), n in listed(report).items():
        by_model[model] += n
    assert by_model == Counter(before["model"][differ])


def test_disagreements_are_listed_by_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: Path) -> None:
    summary = run(capsys, foreign, "--verifier", "numeric", "--report", tmp_path / "report.md")
    expected = Counter((cause, model) for model, _, _, _, cause in FOREIGN if cause)
    assert listed(tmp_path / "report.md") == expected
    assert summary["causes"] == {cause: 1 for _, _, _, _, cause in FOREIGN if cause}
    assert (summary["recorded_right"], summary["right_but_refused"], summary["wrong_but_accepted"]) == (5, 4, 3)
    assert summary["disagree_of_right"] == 0.8
    assert summary["models"]["b"]["disagree_of_all"] == 1
    report = (tmp_path / "report.md").read_text()
    assert r"`It \| is '18'`" in report
    assert '"command": "pika verify' in report


def test_graded_anew_a_foreign_table_has_the_new_verdicts_and_says_by_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: Path
) -> None:
    out = tmp_path / "graded.parquet"
    run(capsys, foreign, "--verifier", "numeric", "--out", out)
    table = pq.read_table(out)
    assert table["is_correct"].to_pylist() == [recorded != bool(cause) for _, _, _, recorded, cause in FOREIGN]
    assert table["extracted_answer"].to_pylist() == ["18", "19", None, "-18", "3", "19", "18", "18", "18"]
    [origin] = json.loads(table.schema.metadata[METADATA])["verified"]
    assert origin["verifier"] == "numeric"
    assert len(origin["inputs"]["foreign.parquet"]) == 64
    assert run(capsys, out, "--verifier", "numeric")["disagree_of_all"] == 0


@pytest.fixture
def nano(tmp_path: Path) -> Path:
    """Some of the nano pool's rollouts, with their provenance."""
    table = pq.read_table(NANO)
    pq.write_table(table.take(list(range(0, len(table), 50))), tmp_path / "nano.parquet")
    return tmp_path / "nano.parquet"


def test_rollouts_are_graded_by_their_benchmarks_verifier(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nano: Path
) -> None:
    summary = run(capsys, nano, "--out", tmp_path / "again.parquet")
    assert summary["verifier"] == "boxed"
    assert summary["disagree_of_all"] == 0
    assert summary["solutions"] == 8 * len(pq.read_table(nano))
    assert pq.read_table(tmp_path / "again.parquet").equals(pq.read_table(nano))


def test_wrong_verdicts_in_rollouts_are_found_and_put_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], nano: Path
) -> None:
    table = pq.read_table(nano)
    rows = table.to_pylist()
    for row in rows[:3]:
        row["correct"] = [not verdict for verdict in row["correct"]]
        row |= {"success_rate": 0.5, "pass_at_k": 0.5, "majority_vote_answer": "?", "majority_vote_is_correct": None}
    broken = tmp_path / "broken.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), broken)
    summary = run(capsys, broken, "--out", tmp_path / "mended.parquet")
    assert summary["right_but_refused"] + summary["wrong_but_accepted"] == 24
    mended = pq.read_table(tmp_path / "mended.parquet")
    assert mended.equals(table)
    provenance = json.loads(mended.schema.metadata[METADATA])
    [verified] = provenance.pop("verified")
    assert provenance == json.loads(table.schema.metadata[METADATA])
    assert list(verified["inputs"]) == ["broken.parquet"]


def change(rows: list[dict[str, Any]], **values: Any) -> list[dict[str, Any]]:
    return [rows[0] | values, *rows[1:]]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ({}, [], "the file names no benchmark: say how its answers are checked, with --verifier"),
        ({}, ["--verifier", "numbr"], "did you mean 'numeric'"),
        ({"ground_truth": None}, ["--verifier", "numeric"], "ground_truth of row 0 is None"),
        ({"ground_truth": "eighteen"}, ["--verifier", "numeric"], "'eighteen' must be one number"),
        ({"response": None}, ["--verifier", "numeric"], "response of row 0 is None"),
        ({"is_correct": None}, ["--verifier", "numeric"], "row 0: the verdicts on record must be true or false"),
    ],
)
def test_bad_rows_are_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    foreign: Path,
    values: dict[str, Any],
    options: list[str],
    message: str,
) -> None:
    table = pq.read_table(foreign)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist(), **values), schema=table.schema), foreign)
    assert main([str(foreign), *options, "--out", str(tmp_path / "out.parquet")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"generated_solutions": []}, "row 0 has no solutions"),
        ({"generated_solutions": ["1"]}, "row 0 has 1 solutions and 8 verdicts"),
        ({"benchmark": "other"}, "its benchmarks are other, running_total"),
    ],
)
def test_rollouts_that_cannot_be_verified(
    capsys: pytest.CaptureFixture[str], nano: Path, values: dict[str, Any], message: str
) -> None:
    table = pq.read_table(nano)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist(), **values), schema=table.schema), nano)
    assert main([str(nano)]) == 2
    assert message in capsys.readouterr().err


def test_files_that_cannot_be_read_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], foreign: Path
) -> None:
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"response": ["1"], "answer": ["1"]}), other)
    assert main([str(other)]) == 2
    assert "lacks ground_truth, is_correct" in capsys.readouterr().err
    pq.write_table(pq.read_table(foreign).slice(0, 0), other)
    assert main([str(other), "--verifier", "numeric"]) == 2
    assert "has no rows" in capsys.readouterr().err
    other.write_text("text")
    for file, said in ((other, "as parquet"), (tmp_path / "none.parquet", "there is no file")):
        assert main([str(file)]) == 2
        assert said in capsys.readouterr().err
    for option in ("--out", "--report"):
        assert main([str(foreign), "--verifier", "numeric", option, "/nowhere/file.parquet"]) == 1
        assert "choose another --out or --report" in capsys.readouterr().err
