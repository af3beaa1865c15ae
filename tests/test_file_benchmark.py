"""`--benchmark file`: problems of one's own, in whatever file they are."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from offline.benchmarks.base import Benchmark, BenchmarkError, Problem, Source, load
from tests.support.benchmark_repos import own

Rows = Sequence[dict[str, Any]]


def written(file: Path, rows: Rows) -> Path:
    match file.suffix:
        case ".parquet":
            pq.write_table(pa.Table.from_pylist(list(rows)), file)
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            with file.open("w", newline="") as lines:
                writer = csv.DictWriter(lines, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    return file


def opened(file: Path, **fields: str) -> Benchmark:
    known = {"verifier": "numeric", "question_column": "question", "answer_column": "answer"}
    return load("file", Source(str(file), **{**known, **fields}))


def everything(benchmark: Benchmark) -> dict[str, list[Problem]]:
    return {split: benchmark.problems(split, None, seed=0) for split in benchmark.splits}


@pytest.mark.parametrize("name", ["own.parquet", "own.jsonl", "own.csv"])
def test_every_format_holds_the_same_problems(name: str, tmp_path: Path) -> None:
    splits = everything(opened(written(tmp_path / name, own(40))))
    problems = [problem for of_split in splits.values() for problem in of_split]
    assert {problem.problem: problem.ground_truth for problem in problems} == {
        row["question"]: str(row["answer"]) for row in own(40)
    }
    assert {problem.metadata["topic"] for problem in problems} == {"sums"}
    # Neither the format nor the rows' order decides splits.
    other = everything(opened(written(tmp_path / "other.jsonl", own(40)[::-1])))
    assert {split: [p.problem_id for p in of] for split, of in other.items()} == {
        split: [p.problem_id for p in of] for split, of in splits.items()
    }


def test_two_thousand_problems_are_cut_by_the_shares(tmp_path: Path) -> None:
    splits = everything(opened(written(tmp_path / "own.csv", own(2000))))
    sizes = [len(splits[split]) for split in ("train", "validation", "test")]
    assert sum(sizes) == 2000
    assert sizes == [pytest.approx(1200, abs=90), pytest.approx(400, abs=75), pytest.approx(400, abs=75)]


def test_splits_of_the_file_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "part": "val" if i < 5 else "test"} for i, row in enumerate(own(20))]
    benchmark = opened(written(tmp_path / "own.parquet", rows), split_column="part")
    assert len(benchmark.problems("validation", None, seed=0)) == 5
    assert len(benchmark.problems("test", None, seed=0)) == 15
    with pytest.raises(BenchmarkError, match="no split 'train': choose one of validation, test"):
        benchmark.problems("train", 1, seed=0)


def test_ids_of_the_file_are_kept(tmp_path: Path) -> None:
    rows = [{**row, "name": 100 + i} for i, row in enumerate(own(20))]
    benchmark = opened(written(tmp_path / "own.parquet", rows), id_column="name")
    ids = {problem.problem_id for of_split in everything(benchmark).values() for problem in of_split}
    assert ids == {str(100 + i) for i in range(20)}


def test_repeats_and_rows_without_an_answer_are_counted(tmp_path: Path) -> None:
    rows = [{"question": row["question"], "answer": float(row["answer"])} for row in own(40)]
    rows = [
        *rows,
        rows[3],
        {"question": "Unanswered?", "answer": None},
        {"question": "Not a number?", "answer": float("nan")},
    ]
    benchmark = opened(written(tmp_path / "own.parquet", rows))
    assert sum(map(len, everything(benchmark).values())) == 40
    assert "rows that repeat a problem: 1 left out" in benchmark.notes
    without = [note for note in benchmark.notes if "without an answer" in note]
    assert sum(int(note.split()[-3]) for note in without) == 2


def test_csv_texts_stay_as_they_are_written(tmp_path: Path) -> None:
    rows = [{"question": f'Spell {i}\nplease, "exactly"', "answer": f"00{i}"} for i in range(30)] + [
        {"question": "The abbreviation?", "answer": "NA"}
    ]
    splits = everything(opened(written(tmp_path / "own.csv", rows), verifier="exact"))
    assert sorted(p.ground_truth for of in splits.values() for p in of) == sorted(row["answer"] for row in rows)


def with_split(rows: Rows, *splits: str) -> Rows:
    return [{**row, "split": split} for row, split in zip(rows, splits, strict=True)]


REFUSED: dict[str, tuple[str, Rows | str | bytes, dict[str, str], str]] = {
    "no such column": (
        "a.csv",
        own(3),
        {"question_column": "prompt"},
        "no column prompt; its columns: question, answer",
    ),
    "no answer column": ("a.jsonl", own(3), {"answer_column": "truth"}, "no column truth; its columns: question"),
    "no id column": ("a.parquet", own(3), {"id_column": "uid"}, "no column uid"),
    "no split column": ("a.csv", own(3), {"split_column": "part"}, "no column part"),
    "leakage": (
        "a.csv",
        with_split([*own(1), *own(1)], "train", "test"),
        {"split_column": "split"},
        "a problem of train stands in test too, which is leakage",
    ),
    "no split named": (
        "a.csv",
        with_split(own(2), "train", ""),
        {"split_column": "split"},
        "row 2 has nothing in column split",
    ),
    "one id, two problems": (
        "a.jsonl",
        [{**row, "uid": 7} for row in own(2)],
        {"id_column": "uid"},
        "uid '7' stands for two problems",
    ),
    "an empty id": (
        "a.jsonl",
        [{**row, "uid": None} for row in own(2)],
        {"id_column": "uid"},
        "row 1 has nothing in column uid",
    ),
    "answers of another kind": (
        "a.csv",
        [{"question": "Who?", "answer": "Ann", "split": "train"}],
        {"split_column": "split"},
        "in the problem 'Who\\?'",
    ),
    "no rows": ("a.jsonl", "", {}, "holds no problems"),
    "only a header": ("a.csv", "question,answer\n", {}, "holds no problems"),
    "no JSON": ("a.jsonl", '{"question": "a"\n', {}, "cannot be read as jsonl"),
    "no objects": ("a.jsonl", "[1, 2]\n", {}, "each line must be a JSON object"),
    "half a character": ("a.jsonl", '{"question": "\\ud800", "answer": 1}\n', {}, "surrogates not allowed"),
    "no UTF-8": ("a.csv", b"question,answer\n\xff\xfe,1\n", {}, "cannot be read as csv"),
    "a ragged row": ("a.csv", "question,answer\nWhy, oh why?,1,2\n", {}, "more fields than there are columns"),
    "no parquet": ("a.parquet", "question,answer\n", {}, "cannot be read as parquet"),
    "another format": ("a.xlsx", "", {}, "must end in .parquet, .jsonl, .csv"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_bad_input_is_refused_with_a_reason(what: str, tmp_path: Path) -> None:
    name, content, fields, message = REFUSED[what]
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif isinstance(content, str):
        file.write_text(content)
    else:
        written(file, content)
    benchmark = opened(file, **fields)
    with pytest.raises(BenchmarkError, match=message):
        benchmark.problems("train", None, seed=0)


def test_options_that_are_missing_or_do_not_fit_are_named(tmp_path: Path) -> None:
    file = written(tmp_path / "own.csv", own(3))
    with pytest.raises(
        BenchmarkError, match=r"needs --dataset FILE, --verifier NAME, --question-column NAME, --answer"
    ):
        load("file")
    with pytest.raises(BenchmarkError, match="did you mean 'numeric'"):
        opened(file, verifier="numerc")
    with pytest.raises(BenchmarkError, match="neither configurations nor revisions"):
        opened(file, revision="main")
    with pytest.raises(BenchmarkError, match="there is no file"):
        opened(tmp_path / "gone.csv").problems("train", 1, seed=0)
