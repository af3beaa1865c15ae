"""Tiny local repositories in the form of the data sets that benchmarks read. All problems are made up.

source = write("gsm8k", tmp_path)
load("gsm8k", source).problems("test", n=3, seed=0)
"""

import base64
import json
import pickle
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import yaml

from offline.benchmarks.base import Problem, Source

Rows = list[dict[str, Any]]
Files = Mapping[str, Rows]
"""By path in the repository."""


def write(name: str, folder: Path) -> Source:
    """A repository of one benchmark's form; what names it."""
    if name == "running_total":
        return Source()
    if name == "file":
        file = folder / "problems.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in own(30)))
        return Source(str(file), verifier="numeric", question_column="question", answer_column="answer")
    if name not in REPOSITORIES:
        raise NotImplementedError(f"give {name} a tiny repository in {__file__}")
    return Source(str(repository(folder / name, *REPOSITORIES[name]())))


def repository(folder: Path, files: Files, configs: Mapping[str, Mapping[str, str]]) -> Path:
    """As the Hub has it: files of rows, and a card that says which are a configuration's splits."""
    for path, rows in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        elif file.suffix == ".csv":
            pyarrow.csv.write_csv(pa.Table.from_pylist(rows), file)
        else:
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    card = {
        "configs": [
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in splits.items()]}
            for config, splits in configs.items()
        ]
    }
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump(card, sort_keys=False)}---\n# Made up\n")
    return folder


def packed(tests: Rows) -> str:
    """As LiveCodeBench packs its private tests."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def perfect(problem: Problem, verifier: str) -> str:
    """A solution that is right."""
    if verifier == "code":
        return f"I think.\n\n```python\n{_program_for(problem)}```\n"
    return f"I think. The answer is \\boxed{{{problem.ground_truth}}}."


def _program_for(problem: Problem) -> str:
    about = problem.metadata
    if "task_id" in about:
        i = about["task_id"].rpartition("/")[2]
        return f"def add_{i}(numbers):\n    return [number + {i} for number in numbers]\n"
    if about["platform"] == "leetcode":
        return (
            "class Solution:\n    def shift(self, numbers: List[int], by: int) -> List[int]:\n"
            "        return [number + by for number in numbers]\n"
        )
    return f"print(int(input()) + {about['question_id'].rpartition('_')[2]})\n"


def own(n: int) -> Rows:
    return [{"question": f"What is {i} plus {i}?", "answer": 2 * i, "topic": "sums", "hard": i / n} for i in range(n)]


def _math() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    def rows(first: int, n: int) -> Rows:
        return [
            {
                "problem": f"What is half of ${i}$?",
                "level": f"Level {i % 5 + 1}",
                "solution": rf"First \boxed{{0}}. No: half of ${i}$ is $\boxed{{\frac{{{i}}}{{2}}}}$.",
                "type": "Prealgebra",
            }
            for i in range(first, first + n)
        ]

    files = {"data/train-00000-of-00001.parquet": rows(0, 30), "data/test-00000-of-00001.parquet": rows(100, 12)}
    return files, {"default": {"train": "data/train-*", "test": "data/test-*"}}


def _gsm8k() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    def rows(first: int, n: int) -> Rows:
        return [
            {"question": f"Kim has {i} pens and buys 1500.", "answer": f"{i}+1500=<<{i}+1500>>\n#### {i + 1500:,}"}
            for i in range(first, first + n)
        ]

    files = {
        "main/train-00000-of-00001.parquet": rows(0, 30),
        "main/test-00000-of-00001.parquet": rows(100, 12),
        "socratic/train-00000-of-00001.parquet": rows(0, 1),
    }
    return files, {
        "main": {"train": "main/train-*", "test": "main/test-*"},
        "socratic": {"train": "socratic/train-*"},
    }


def _aime() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    rows = [
        {
            "ID": f"1999-{i}",
            "Year": 1999,
            "Problem Number": i,
            "Question": f"Find ${i}$ squared.",
            "Answer": i * i,
            "Part": None,
        }
        for i in range(30)
    ]
    return {"AIME_Dataset.csv": rows}, {"default": {"train": "AIME_Dataset.csv"}}


def _aime2025() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    rows = [
        {"problem_idx": i, "problem": f"Find ${i}$ cubed.", "answer": i**3, "problem_type": ["Algebra"]}
        for i in range(30)
    ]
    return {"data/train-00000-of-00001.parquet": rows}, {"default": {"train": "data/train-*"}}


def _gpqa() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    rows = [
        {
            "Record ID": f"rec{i}",
            "Question": f"Which of these is {i} doubled?\n",
            "Correct Answer": f"{2 * i}",
            **{f"Incorrect Answer {j}": f"{2 * i + j}" for j in (1, 2, 3)},
            "Explanation": "Twice is twice.",
            "Subdomain": "Arithmetic",
            "High-level domain": "Mathematics",
            "Writer's Difficulty Estimate": "Easy undergraduate level (or easier)",
        }
        for i in range(30)
    ]
    return {"gpqa_diamond.csv": rows, "gpqa_main.csv": rows[:2]}, {
        "gpqa_main": {"train": "gpqa_main.csv"},
        "gpqa_diamond": {"train": "gpqa_diamond.csv"},
    }


def _polymath() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    levels = ("top", "high", "medium", "low")
    words = {"en": "What is {} plus 1?", "sw": "{} jumlisha 1 ni nini?"}
    files = {
        f"{language}/{level}.parquet": [
            {
                "id": f"{level}-{language}-{i - start}",
                "question": form.format(i),
                "answer": f"{i + 1}",
            }
            for i in range(start, start + 12)
        ]
        for language, form in words.items()
        for start, level in zip(range(0, 4000, 1000), levels, strict=True)
    }
    return files, {language: {level: f"{language}/{level}.parquet" for level in levels} for language in words}


def _e2h_amc() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    def rows(first: int, n: int) -> Rows:
        return [
            {
                "contest": "AMC",
                "rating": i / 100,
                "rating_std": 0.1,
                "year": 2031,
                "index": i,
                "problem": f"How many whole numbers lie between $0$ and ${i}$?",
                "answer": f"{max(0, i - 1)}",
                "item_difficulty": 1 - i / 100,
            }
            for i in range(first, first + n)
        ]

    files = {"E2H-AMC/train-00000-of-00001.parquet": rows(2, 30), "E2H-AMC/eval-00000-of-00001.parquet": rows(50, 12)}
    other = {"E2H-ARC/eval-00000-of-00001.parquet": [{"question": "?"}]}
    return {**files, **other}, {
        "E2H-AMC": {"train": "E2H-AMC/train-*", "eval": "E2H-AMC/eval-*"},
        "E2H-ARC": {"eval": "E2H-ARC/eval-*"},
    }


def _humaneval() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    rows = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": f'from typing import List\n\n\n{signature}\n    """Add {i} to each."""\n',
            "canonical_solution": f"    return [number + {i} for number in numbers]\n",
            "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    assert candidate([1]) == [{i + 1}]\n",
            "entry_point": f"add_{i}",
        }
        for i in range(30)
        for signature in (f"def add_{i}(numbers: List[int]) -> List[int]:",)
    ]
    return {"openai_humaneval/test-00000-of-00001.parquet": rows}, {
        "openai_humaneval": {"test": "openai_humaneval/test-*"}
    }


def _livecodebench() -> tuple[Files, Mapping[str, Mapping[str, str]]]:
    return {"release_latest/test-00000-of-00001.parquet": contest(30)}, {
        "v1": {"test": "release_latest/test-*"},
        "release_latest": {"test": "release_latest/test-*"},
    }


def contest(n: int) -> Rows:
    """Every second one with a method to write, every third one with packed tests."""
    return [_method(i) if i % 2 else _program(i) for i in range(n)]


def _program(i: int) -> dict[str, Any]:
    tests = [{"input": f"{j}\n", "output": f"{j + i}\n", "testtype": "stdin"} for j in (1, 2, 3)]
    return _contest_row(i, f"Read a whole number and print it plus {i}.", "", tests, {})


def _method(i: int) -> dict[str, Any]:
    tests = [{"input": f"[{j}, 2]\n{i}", "output": f"[{j + i}, {2 + i}]", "testtype": "functional"} for j in (1, 2, 3)]
    starter = "class Solution:\n    def shift(self, numbers: List[int], by: int) -> List[int]:\n        "
    return _contest_row(i, f"Add `by`, here {i}, to each of the numbers.", starter, tests, {"func_name": "shift"})


def _contest_row(i: int, content: str, starter: str, tests: Rows, metadata: dict[str, Any]) -> dict[str, Any]:
    return {
        "question_title": f"Add {i}",
        "question_content": content,
        "platform": "leetcode" if starter else "atcoder",
        "question_id": f"abc_{i}",
        "contest_date": "2031-02-03T00:00:00",
        "starter_code": starter,
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": packed(tests[1:]) if i % 3 == 0 else json.dumps(tests[1:]),
        "metadata": json.dumps(metadata),
    }


REPOSITORIES: dict[str, Callable[[], tuple[Files, Mapping[str, Mapping[str, str]]]]] = {
    "math": _math,
    "gsm8k": _gsm8k,
    "aime": _aime,
    "aime2025": _aime2025,
    "gpqa": _gpqa,
    "polymath": _polymath,
    "e2h_amc": _e2h_amc,
    "humaneval": _humaneval,
    "livecodebench": _livecodebench,
}
