"""LiveCodeBench: problems of programming contests, judged by running their tests.

Source: lighteval/code_generation_lite, the rows of livecodebench/code_generation_lite (whose repository is a script,
which is never run), one split, which is cut here (Jain et al., LiveCodeBench: Holistic and Contamination Free
Evaluation of Large Language Models for Code, 2024). Configurations are windows of time: v1 to v6, release_v1 to
release_v6, release_latest (all, some 4 GB). A row looks like this one, which is made up:

    question_title:     Twice
    question_content:   A whole number n is given. Print 2n.
    platform:           atcoder
    contest_date:       2031-02-03T00:00:00
    starter_code:
    difficulty:         easy
    public_test_cases:  [{"input": "4\\n", "output": "8\\n", "testtype": "stdin"}]
    private_test_cases: [{"input": "0\\n", "output": "0\\n", "testtype": "stdin"}]
    metadata:           {"func_name": null}

Private tests may be packed (`offline/packed_text.py`). Where the starter code is a method, its name is `func_name` and
a test's input is one JSON value per line and argument.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from offline.benchmarks.base import BenchmarkError
from offline.dataset_benchmark import CODE, DatasetBenchmark, Row
from offline.packed_text import unpack

MAX_TESTS_BYTES = 2**20
"""Of one problem: the longest beyond are left out, since each row of rollouts carries them. Metadata say how many."""
PRELUDE = """\
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from collections import Counter, OrderedDict, defaultdict, deque
from functools import cache, lru_cache, reduce
from heapq import heapify, heappop, heappush
from itertools import accumulate, combinations, pairwise, permutations, product
from math import ceil, comb, floor, gcd, inf, isqrt, sqrt
from typing import *
"""
"""What the platform of the method problems imports for its contestants."""

Test = dict[str, str]
"""Its input and its output."""


class Livecodebench(DatasetBenchmark):
    dataset = "lighteval/code_generation_lite"
    config = "release_latest"
    question, answer = ("question_content",), ("private_test_cases",)
    needs = ("public_test_cases", "starter_code", "metadata")
    keeps = ("question_id", "question_title", "difficulty", "platform", "contest_date")
    verifier = "code"
    suffix = CODE

    def text(self, row: Row, seed: int) -> str:
        problem, starter = row.text("question_content").strip(), row.text("starter_code").strip()
        if starter:
            return f"{problem}\n\nComplete this code:\n\n```python\n{starter}\n```"
        return f"{problem}\n\nRead from standard input and write to standard output."

    def truth(self, row: Row, seed: int) -> str:
        tests, _ = self._tests(row)
        if not tests:
            return ""
        if not row.text("starter_code").strip():
            return json.dumps({"kind": "stdin", "tests": tests})
        with self._form(row):
            entry_point = json.loads(row.text("metadata"))["func_name"]
            called = [_called(test) for test in tests]
        return json.dumps({"kind": "functional", "entry_point": entry_point, "tests": called, "prelude": PRELUDE})

    def about(self, row: Row) -> dict[str, Any]:
        return {**super().about(row), "tests_left_out": self._tests(row)[1]}

    def _tests(self, row: Row) -> tuple[list[Test], int]:
        """The tests that are kept, and how many are not."""
        with self._form(row):
            tests = [*_listed(row.text("public_test_cases")), *_listed(row.text("private_test_cases"))]
        kept: list[Test] = []
        size = 0
        for test in sorted(tests, key=lambda test: len(test["input"]) + len(test["output"])):
            size += len(test["input"]) + len(test["output"])
            if size <= MAX_TESTS_BYTES:
                kept.append(test)
        return kept, len(tests) - len(kept)

    @contextmanager
    def _form(self, row: Row) -> Iterator[None]:
        try:
            yield
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            named = f"{self.where}: {row.text('question_content').strip()[:60]!r}"
            raise BenchmarkError(f"{named} has tests of another form: {type(error).__name__} {error}") from error


@lru_cache(maxsize=2)
def _listed(text: str) -> list[Test]:
    listed = json.loads(text if text.lstrip().startswith("[") else unpack(text)) if text else []
    return [{"input": str(test["input"]), "output": str(test["output"])} for test in listed]


def _called(test: Test) -> dict[str, Any]:
    arguments = [json.loads(line) for line in test["input"].split("\n") if line.strip()]
    return {"input": arguments, "output": json.loads(test["output"])}
