"""Majority votes, pass@k, and grading in processes that may hang or crash."""

import logging
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.verifiers import process_pool
from offline.verifiers.base import VerifierError, load
from offline.verifiers.grading import grade, grade_all, majority_vote, pass_at_k
from offline.verifiers.math import Math
from tests.support.processes import descendants


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["1", "2", "2"], 1),
        (["1", "2"], 0),
        (["1", "2", "2", "1"], 0),
        ([None, None, "3"], 2),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_majority_is_where_its_answer_stands_first(answers: list[str | None], winner: int | None) -> None:
    assert majority_vote(answers) == winner


def test_equal_answers_vote_together_however_they_are_written() -> None:
    solutions = [rf"\boxed{{{answer}}}" for answer in ("7", r"\frac{1}{2}", "0.5", "7", r"\frac{2}{4}")]
    graded = grade(load("math"), solutions, "1/2")
    assert graded.correct == [False, True, True, False, True]
    assert (graded.majority_vote_answer, graded.majority_vote_is_correct) == (r"\frac{1}{2}", True)
    assert grade_all("math", [(solutions, "1/2")]) == [graded]


def test_a_majority_of_wrong_answers_is_wrong() -> None:
    graded = grade(load("numeric"), ["#### 3", "#### 4", "none", "#### 3.0"], "4")
    assert graded.answers == ["3", "4", None, "3"]
    assert (graded.majority_vote_answer, graded.majority_vote_is_correct) == ("3", False)


@given(st.integers(1, 8), st.data())
def test_pass_at_k_is_the_share_of_draws_with_a_correct_answer(n: int, data: st.DataObject) -> None:
    correct, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))


@pytest.mark.parametrize(("n", "correct", "k"), [(4, 2, 5), (0, 0, 1), (4, 5, 2), (4, -1, 2), (4, 2, 0)])
def test_pass_at_k_is_undefined_below_k(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="undefined"):
        pass_at_k(n, correct, k)


HANGING = r"\boxed{9^{9^{9^{9}}}}"
ITEMS = [([rf"\boxed{{{n}}}", r"\boxed{\frac{4}{2}}", "none"], "2") for n in range(12)]


def test_the_number_of_workers_changes_nothing() -> None:
    done: list[int] = []
    alone = grade_all("math", ITEMS, workers=1)
    assert grade_all("math", ITEMS, workers=3, on_done=done.append) == alone
    assert sum(done) == len(ITEMS)
    assert [one.correct for one in alone] == [[n == 2, True, False] for n in range(12)]
    assert alone == [grade(load("math"), *item) for item in ITEMS]


def test_a_solution_that_hangs_is_wrong_and_the_others_stand(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Math, "limit_s", 3.0)
    items = [*ITEMS[:2], ([r"\boxed{2}", HANGING, "2", r"\boxed{3}"], "2"), *ITEMS[2:4]]
    with caplog.at_level(logging.WARNING):
        graded = grade_all("math", items, workers=2)
    assert graded[2].correct == [True, False, True, False]
    assert graded[2].answers == ["2", None, "2", "3"]
    assert [one.given_up for one in graded] == [0, 0, 1, 0, 0]
    assert "1 of 16 solutions took over 3 CPU seconds, or crashed: wrong" in caplog.text
    assert graded[:2] + graded[3:] == [grade(load("math"), *item) for item in ITEMS[:4]]


@pytest.mark.parametrize("name", ["math", "numeric", "code"])
def test_a_ground_truth_of_no_use_is_named_before_anything_is_graded(name: str) -> None:
    done: list[int] = []
    with pytest.raises(VerifierError):
        grade_all(name, [([r"\boxed{1}"], " ")], on_done=done.append)
    assert not done


def test_no_solutions_and_no_problems() -> None:
    assert grade_all("math", []) == []
    for name in ("math", "numeric"):
        [graded] = grade_all(name, [([], "1")])
        assert (graded.answers, graded.majority_vote_answer, graded.majority_vote_is_correct) == ([], None, False)


def test_code_is_graded_like_any_answer() -> None:
    truth = '{"kind": "functional", "entry_point": "one", "tests": [{"input": [], "output": 1}]}'
    right, wrong = ("```python\ndef one():\n    return 1\n```", "```python\nimport os\nos._exit(0)\n```")
    [graded] = grade_all("code", [([wrong, right, "I cannot"], truth)], workers=2)
    assert graded.correct == [False, True, False]


@pytest.mark.parametrize(
    ("function", "calls", "results"),
    [
        ("operator:add", [[1, 2], ["a", "b"]], [3, "ab"]),
        ("operator:pow", [[2, 3], [9, 9**9], [2, 4]], [8, None, 16]),  # in C, where no Python code can interrupt it
        ("operator:mul", [["x", 2], ["x", 10**11]], ["xx", None]),
        ("os:_exit", [[0], [1]], [None, None]),
        ("os:abort", [[]], [None]),
        ("operator:truediv", [[1, 0], [1, 2]], [None, 0.5]),
    ],
)
def test_a_call_that_fails_costs_no_other(function: str, calls: list[list[object]], results: list[object]) -> None:
    before = descendants(os.getpid())
    assert dict(process_pool.each(function, calls, workers=2, limit_s=2)) == dict(enumerate(results))
    assert descendants(os.getpid()) == before


def test_a_fault_of_the_machine_is_no_wrong_answer() -> None:
    with pytest.raises(OSError, match="No such file"):
        list(process_pool.each("os:listdir", [["/nowhere"]], workers=1, limit_s=5))


def test_workers_end_when_nobody_wants_more() -> None:
    before = descendants(os.getpid())
    results = process_pool.each("operator:neg", [[1], [2], [3]], workers=2, limit_s=60)
    next(results)
    assert len(descendants(os.getpid()) - before) == 2
    results.close()  # type: ignore[attr-defined]  # a generator
    assert descendants(os.getpid()) == before


def test_a_script_without_a_main_guard_may_grade(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from offline.verifiers.grading import grade_all\n"
        "print(grade_all('math', [(['\\\\boxed{0.5}'], '1/2')], workers=2)[0].correct)\n"
    )
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "[True]\n"
