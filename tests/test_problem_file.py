"""Files of problems in four formats: the same problems come out of each, and what is wrong with one is said."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.evaluate import DataError
from offline.problem_file import FORMATS, read_problems, write_columns
from offline.provenance import noted

ROWS = [
    {"idx": 7, "question": "What is 7 + 5?", "split": "train"},
    {"idx": 3, "question": 'Naïve "√2",\n東京 🍎, NA', "split": "val"},
    {"idx": 12, "question": "NA", "split": "val"},
]


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    match file.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        case ".jsonl":
            file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
        case ".json":
            file.write_text(json.dumps(rows))
        case ".csv":
            with file.open("w", newline="", encoding="utf-8-sig") as lines:
                writer = csv.DictWriter(lines, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return file


@pytest.mark.parametrize("suffix", FORMATS)
def test_problems_come_in_the_files_order(tmp_path: Path, suffix: str) -> None:
    file = write(tmp_path / f"data{suffix}", ROWS)
    found = read_problems(file)
    assert (found.id_column, found.ids) == ("idx", [7, 3, 12])
    assert found.texts == [row["question"] for row in ROWS]
    assert found.splits == ["train", "val", "val"]
    assert found.formatted is None
    for name in ("val", "validation"):
        found = read_problems(file, name)
        assert (found.ids, found.splits) == ([3, 12], None)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    columns = {"problem_id": ["a", "007"], "problem": ['x, "y"\nz', "é"], "difficulty": [0.1, 1 / 3]}
    out, beside = tmp_path / f"out{suffix}", tmp_path / f"out{suffix}.provenance.json"
    write_columns(out, columns, {"seed": 1})
    assert set(tmp_path.iterdir()) == ({out} if suffix == ".parquet" else {out, beside})
    told = noted(pq.read_schema(out).metadata) if suffix == ".parquet" else json.loads(beside.read_text())
    assert told == {"seed": 1}
    found = read_problems(tmp_path / f"out{suffix}")
    assert (found.ids, found.texts) == (["a", "007"], ['x, "y"\nz', "é"])


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "out.csv"
    file.write_text("old")
    with pytest.raises(ValueError, match="zip"):
        write_columns(file, {"idx": [1, 2], "difficulty": [0.5]}, {})
    assert [one.name for one in tmp_path.iterdir()] == ["out.csv"]
    assert file.read_text() == "old"


def test_problem_id_and_problem_come_first(tmp_path: Path) -> None:
    row = {"idx": 1, "problem_id": "p-1", "question": "q", "problem": "p", "formatted_prompt": "<q>"}
    found = read_problems(write(tmp_path / "data.jsonl", [row]))
    assert (found.id_column, found.ids, found.texts, found.formatted) == ("problem_id", ["p-1"], ["p"], ["<q>"])


def test_of_rollouts_the_probes_own_arm_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"problem_id": f"p-{i}", "problem": f"text {i}", "arm": arm, "formatted_prompt": f"{arm}: text {i}"}
        for arm in ("small", "large")
        for i in range(3)
    ]
    file = write(tmp_path / "rollouts.parquet", rows)
    found = read_problems(file, arm="large")
    assert (found.ids, found.formatted) == (["p-0", "p-1", "p-2"], [f"large: text {i}" for i in range(3)])
    assert capsys.readouterr().err == ""
    assert read_problems(file, arm="unknown").ids == ["p-0", "p-1", "p-2"]
    assert "3 of 6 rows repeat a problem: left out" in capsys.readouterr().err


def test_ids_may_repeat_between_splits(tmp_path: Path) -> None:
    rows = [{"idx": 0, "problem": split, "split": split} for split in ("train", "test")]
    found = read_problems(write(tmp_path / "data.json", rows))
    assert (found.ids, found.splits) == ([0, 0], ["train", "test"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"id": 1, "problem": "x"}], "has neither problem_id nor idx; its columns: id, problem"),
        ([{"idx": 1, "text": "x"}], "has neither problem, question nor formatted_prompt; its columns: idx, text"),
        ([], "holds no problems|neither problem_id"),
        ([{"idx": 1, "problem": "x"}, {"idx": 1, "problem": "y"}], "idx 1 stands for two problems"),
        ([{"idx": 1, "problem": ""}], "idx 1 has no text in problem"),
        ([{"idx": 1, "problem": None}], "idx 1 has no text in problem"),
        ([{"idx": 1, "problem": 5}], "idx 1 has no text in problem"),
        ([{"idx": None, "problem": "x"}], "idx of row 1 is None"),
        ([{"idx": [1], "problem": "x"}], r"idx of row 1 is \[1\]"),
        (
            [
                {"idx": 1, "problem": "x", "formatted_prompt": "<x>"},
                {"idx": 2, "problem": "y", "formatted_prompt": None},
            ],
            "idx 2 has no text in formatted_prompt: give all one, or none",
        ),
        ([{"idx": 1, "problem": "x", "formatted_prompt": 5}], "idx 1 has no text in formatted_prompt"),
        ([{"idx": 1, "problem": "half \ud83d"}], "idx 1 holds a lone surrogate"),
        ([{"idx": 1, "problem": "x", "formatted_prompt": "\ud83d"}], "idx 1 holds a lone surrogate"),
        ([{"idx": "\ud83d", "problem": "x"}], r"idx '\\ud83d' holds a lone surrogate"),
        ([{"idx": 1, "problem": "x", "split": "\ud83d"}], "idx 1 holds a lone surrogate"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=message):
        read_problems(file)


def test_unknown_splits_and_formats_are_named(tmp_path: Path) -> None:
    file = write(tmp_path / "data.jsonl", ROWS)
    with pytest.raises(DataError, match="has no split 'test'; it has train, val"):
        read_problems(file, "test")
    write(file, [{"idx": 1, "problem": "x"}])
    with pytest.raises(DataError, match="has no column split: leave --split out"):
        read_problems(file, "test")
    with pytest.raises(DataError, match=r"must end in \.parquet, \.jsonl, \.json, \.csv"):
        read_problems(tmp_path / "data.txt")


@pytest.mark.parametrize("suffix", FORMATS)
def test_unreadable_files_are_named(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"data{suffix}"
    with pytest.raises(DataError, match=f"cannot read .*data{suffix} as {suffix[1:]}"):
        read_problems(file)
    file.write_bytes(b"\xff\xfe{[")
    with pytest.raises(DataError, match=f"cannot read .*data{suffix} as {suffix[1:]}"):
        read_problems(file)
