"""What is wrong with a benchmark's data, and what a new benchmark takes."""

from pathlib import Path
from typing import Any

import pytest

from offline.benchmarks.base import Benchmark, BenchmarkError, Source, load, names
from tests.support.benchmark_problems import everything
from tests.support.benchmark_repos import repository


def gsm8k(folder: Path, train: list[dict[str, Any]], test: list[dict[str, Any]]) -> Benchmark:
    files = {"train.jsonl": train, "test.jsonl": test}
    splits = {"main": {"train": "train.jsonl", "test": "test.jsonl"}}
    return load("gsm8k", Source(str(repository(folder / "gsm8k", files, splits))))


def rows(*questions: str, answer: str = "#### 1") -> list[dict[str, Any]]:
    return [{"question": question, "answer": answer} for question in questions]


MANY = [f"Problem {i}" for i in range(20)]


def test_repeats_are_left_out_and_counted(tmp_path: Path) -> None:
    benchmark = gsm8k(tmp_path, rows(*MANY, "Problem  1 ", "Problem 2"), rows("Problem 3", "Problem 90"))
    problems = everything(benchmark)
    assert sorted(p.problem for p in problems if p.split == "test") == ["Problem 3", "Problem 90"]
    assert len(problems) == 21
    assert sorted(benchmark.notes) == [
        "problems of train that stand in test too: 1 left out",
        "rows that repeat a problem: 2 left out",
    ]


def test_rows_without_question_or_answer_are_left_out_and_counted(tmp_path: Path) -> None:
    broken = [*rows("no number", answer="none"), {"question": None, "answer": "#### 1"}]
    benchmark = gsm8k(tmp_path, [*rows(*MANY), *broken], rows("Problem 90"))
    assert len(everything(benchmark)) == 21
    assert "rows without a question: 1 left out" in benchmark.notes
    assert any(note.endswith("without an answer: 1 left out") for note in benchmark.notes)


def test_missing_columns_are_named_with_those_there(tmp_path: Path) -> None:
    bad = [{"q": "?", "answer": "#### 1"}]
    with pytest.raises(BenchmarkError, match="no column question; its columns: q, answer"):
        everything(gsm8k(tmp_path, bad, bad))


def test_a_broken_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BenchmarkError, match="no files of rows"):
        everything(load("aime", Source(str(tmp_path / "empty"))))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "test.jsonl").write_text('{"Question": 1}\n{"Question')
    with pytest.raises(BenchmarkError, match="cannot be read: JSON parse error"):
        everything(load("aime", Source(str(tmp_path / "broken"))))


def test_a_repository_that_is_a_script_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "script"
    folder.mkdir()
    (folder / "script.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(BenchmarkError, match=r"scripts are no longer supported.*holds the rows themselves"):
        everything(load("aime", Source(str(folder))))


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("gsm8k", Source("nowhere"), "neither a folder nor the owner/name"),
        ("gsm8k", Source(".", revision="main"), "has no revisions"),
        ("gsm8k", Source(verifier="math"), "gsm8k knows its verifier and columns"),
        ("gsm8k", Source(split_column="split"), "go with --benchmark file"),
        ("running_total", Source("openai/gsm8k"), "makes its own problems"),
        ("gsm9k", None, "did you mean 'gsm8k'"),
    ],
)
def test_sources_that_cannot_be_are_refused(name: str, source: Source | None, message: str) -> None:
    with pytest.raises(BenchmarkError, match=message):
        everything(load(name, source))


def test_made_problems_have_no_all() -> None:
    with pytest.raises(BenchmarkError, match="say how many"):
        load("running_total").problems("test", None, seed=0)


NEW = '''"""Riddles of my own.

Source: ann/riddles, one split. A row:

    riddle: What has keys but opens no door?
    solution: a piano
"""

from offline.dataset_benchmark import DatasetBenchmark


class Riddles(DatasetBenchmark):
    dataset = "ann/riddles"
    question, answer = ("riddle",), ("solution",)
    keeps = ("age",)
    verifier = "exact"
    suffix = "\\n\\nAnswer in one line, which begins with `Answer:`."
'''


def test_a_new_benchmark_is_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import offline.benchmarks

    package = tmp_path / "benchmarks"
    package.mkdir()
    (package / "riddles.py").write_text(NEW)
    monkeypatch.setattr(offline.benchmarks, "__path__", [*offline.benchmarks.__path__, str(package)])
    assert "riddles" in names()

    riddles = [{"riddle": f"What is {i} in words?", "solution": f"number {i}", "age": i} for i in range(60)]
    folder = repository(tmp_path / "riddles", {"train.parquet": riddles}, {"default": {"train": "train.parquet"}})
    benchmark = load("riddles", Source(str(folder)))
    problems = everything(benchmark)
    assert len(problems) == 60
    assert all(problem.ground_truth == f"number {problem.metadata['age']}" for problem in problems)
    assert benchmark.messages(problems[0])[0]["content"].endswith("which begins with `Answer:`.")
