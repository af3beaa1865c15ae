"""What every benchmark keeps to, and each one's own form, on tiny local repositories of exactly that form."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from offline.benchmarks.base import Benchmark, BenchmarkError, Source, load, names
from offline.dataset_benchmark import DatasetBenchmark
from offline.verifiers import base as verifiers
from offline.verifiers.grading import grade
from tests.support.benchmark_problems import MADE, everything
from tests.support.benchmark_repos import contest, packed, perfect, repository, write


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Benchmark]:
    """A benchmark on its tiny repository."""
    return lambda name: load(name, write(name, tmp_path))


@pytest.mark.parametrize("name", names())
def test_every_benchmark_keeps_the_contract(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    verifier = verifiers.load(benchmark.verifier)
    problems = everything(benchmark)
    assert {problem.split for problem in problems} == {"train", "validation", "test"}
    assert len({problem.problem_id for problem in problems}) == len(problems)
    assert len({problem.problem for problem in problems}) == len(problems)
    for problem in problems:
        *_, last = benchmark.messages(problem)
        assert last["role"] == "user"
        assert problem.problem in last["content"]
        assert not verifier.is_correct(None, problem.ground_truth)
        json.dumps(dict(problem.metadata), allow_nan=False)
    for problem in problems[:: max(1, len(problems) // 6)]:
        graded = grade(verifier, [perfect(problem, benchmark.verifier), "I do not know."], problem.ground_truth)
        assert graded.correct == [True, False], (problem, graded)


@pytest.mark.parametrize("name", names())
def test_splits_share_no_problem_whatever_the_seeds(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    split_of: dict[str, str] = {}
    for seed in range(4):
        for problem in everything(benchmark, seed):
            # Of multiple choice only the question: the order of its choices is the seed's.
            text = problem.problem.partition("\n\nA)")[0]
            assert split_of.setdefault(text, problem.split) == problem.split


@pytest.mark.parametrize("name", names())
def test_problems_depend_on_the_seed_alone(name: str, tmp_path: Path) -> None:
    source = write(name, tmp_path)
    first = load(name, source).problems("train", 8, seed=1)
    assert load(name, source).problems("train", 8, seed=1) == first
    assert load(name, source).problems("train", 3, seed=1) == first[:3]
    assert load(name, source).problems("train", 8, seed=2) != first


@pytest.mark.parametrize("name", [name for name in names() if name not in MADE])
def test_more_than_there_are_is_refused_with_the_number(name: str, opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened(name)
    there = len(benchmark.problems("test", None, seed=0))
    assert len(benchmark.problems("test", there, seed=0)) == there
    with pytest.raises(BenchmarkError, match=f"has {there} problems, {there + 1} asked for.*--split test=all"):
        benchmark.problems("test", there + 1, seed=0)
    with pytest.raises(BenchmarkError, match="no split 'dev': choose one of train, validation, test"):
        benchmark.problems("dev", 1, seed=0)


def test_math_answers_stand_in_the_last_box(opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened("math")
    test = benchmark.problems("test", None, seed=0)
    assert len(test) == 12
    assert len(everything(benchmark)) == 42
    (problem,) = (problem for problem in test if problem.problem == "What is half of $103$?")
    assert problem.ground_truth == r"\frac{103}{2}"
    assert problem.metadata == {"level": "Level 4", "type": "Prealgebra"}
    (message,) = benchmark.messages(problem)
    assert message["content"] == (
        "What is half of $103$? Let's think step by step and output the final answer within \\boxed{}."
    )


def test_gsm8k_is_the_main_configuration(opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened("gsm8k")
    truths = {problem.problem: problem.ground_truth for problem in everything(benchmark)}
    assert truths["Kim has 0 pens and buys 1500."] == "1,500"
    assert len(truths) == 42


def test_a_folder_of_files_alone_will_do(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 100)):
        (tmp_path / f"{split}.jsonl").write_text(
            "".join(json.dumps({"question": f"{i}?", "answer": f"#### {i}"}) + "\n" for i in range(first, first + 20))
        )
    assert len(everything(load("gsm8k", Source(str(tmp_path))))) == 40


def test_validation_is_a_part_of_train_where_test_is_shipped(opened: Callable[[str], Benchmark]) -> None:
    shipped_in_test = {f"Kim has {i} pens and buys 1500." for i in range(100, 112)}
    benchmark = opened("gsm8k")
    assert {problem.problem for problem in benchmark.problems("test", None, seed=0)} == shipped_in_test
    assert 0 < len(benchmark.problems("validation", None, seed=0)) < 15


def test_aime_2025_is_read_of_two_papers_too(tmp_path: Path) -> None:
    papers = {f"{paper}.jsonl": [{"question": f"{paper} {i}", "answer": f"{i}"} for i in range(15)] for paper in "ab"}
    folder = repository(tmp_path / "aime", papers, {paper: {"test": f"{paper}.jsonl"} for paper in "ab"})
    problems = everything(load("aime2025", Source(str(folder), "a,b")))
    assert sorted(problem.problem for problem in problems) == sorted(f"{p} {i}" for p in "ab" for i in range(15))
    with pytest.raises(BenchmarkError, match=r"'a', 'b'.*--dataset-config"):
        everything(load("aime2025", Source(str(folder))))
    with pytest.raises(BenchmarkError, match=r"'c' not found.*'a', 'b'.*--dataset-config"):
        everything(load("aime2025", Source(str(folder), "c")))


def test_gpqa_shuffles_its_choices_by_question_and_seed(opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened("gpqa")
    problems = everything(benchmark)
    assert {problem.ground_truth for problem in problems} == set("ABCD")
    for problem in problems:
        question, _, choices = problem.problem.partition("\n\n")
        i = int(question.split()[4])
        assert sorted(line[3:] for line in choices.split("\n")) == sorted(str(2 * i + j) for j in range(4))
        assert f"{problem.ground_truth}) {2 * i}" in choices.split("\n")
        assert problem.metadata["Subdomain"] == "Arithmetic"
    other = {problem.problem.partition("\n")[0]: problem.ground_truth for problem in everything(benchmark, seed=1)}
    moved = [p for p in problems if other[p.problem.partition("\n")[0]] != p.ground_truth]
    assert 10 < len(moved) < 30


def test_a_polymath_problem_is_in_the_same_split_in_every_language(tmp_path: Path) -> None:
    folder = write("polymath", tmp_path).dataset
    splits = {}
    for language in ("en", "sw"):
        problems = everything(load("polymath", Source(folder, language)))
        assert len(problems) == 48
        assert {problem.metadata["level"] for problem in problems} == {"top", "high", "medium", "low"}
        splits[language] = {p.metadata["id"].replace(f"-{language}-", "-"): p.split for p in problems}
    assert splits["en"] == splits["sw"]
    assert len(everything(load("polymath", Source(folder, "en,sw")))) == 96


def test_e2h_amc_keeps_the_human_difficulty(opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened("e2h_amc")
    assert len(benchmark.problems("test", None, seed=0)) == 12  # its eval split
    for problem in everything(benchmark):
        assert problem.metadata["human_difficulty"] == problem.metadata["index"] / 100


def test_humaneval_asks_for_the_function(opened: Callable[[str], Benchmark]) -> None:
    benchmark = opened("humaneval")
    problem = benchmark.problems("test", 1, seed=0)[0]
    truth = json.loads(problem.ground_truth)
    assert truth["kind"] == "check"
    assert f"def {truth['entry_point']}(numbers: List[int])" in problem.problem
    assert "```python code block" in benchmark.messages(problem)[0]["content"]


def test_livecodebench_tests_are_all_there(opened: Callable[[str], Benchmark]) -> None:
    kinds = set()
    for problem in everything(opened("livecodebench")):
        truth = json.loads(problem.ground_truth)
        kinds.add(truth["kind"])
        assert len(truth["tests"]) == 3
        assert problem.metadata["tests_left_out"] == 0
        if truth["kind"] == "functional":
            by = truth["tests"][0]["input"][1]
            assert truth["tests"][0] == {"input": [[1, 2], by], "output": [1 + by, 2 + by]}
            assert "class Solution:" in problem.problem
        else:
            assert "standard input" in problem.problem
    assert kinds == {"stdin", "functional"}


def livecodebench(folder: Path, **changes: Any) -> DatasetBenchmark:
    rows = [{**row, **changes} for row in contest(30)]
    source = Source(str(repository(folder / "lcb", {"a.jsonl": rows}, {"release_latest": {"test": "a.jsonl"}})))
    benchmark = load("livecodebench", source)
    assert isinstance(benchmark, DatasetBenchmark)
    return benchmark


def test_the_longest_tests_are_left_out_and_counted(tmp_path: Path) -> None:
    tests = [{"input": "1\n" * n, "output": "1\n", "testtype": "stdin"} for n in (1, 2, 600_000)]
    benchmark = livecodebench(tmp_path, private_test_cases=packed(tests), starter_code="")
    for problem in benchmark.problems("test", None, seed=0):
        assert len(json.loads(problem.ground_truth)["tests"]) == 3  # with the public one
        assert problem.metadata["tests_left_out"] == 1


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("bomb"),)


@pytest.mark.parametrize("content", [Bomb(), ["text"], "x" * 100, {"a": Bomb()}], ids=["call", "list", "text", "deep"])
def test_a_pickle_is_never_loaded(content: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import base64
    import pickle
    import zlib

    monkeypatch.chdir(tmp_path)
    code = base64.b64encode(zlib.compress(pickle.dumps(content))).decode()
    with pytest.raises(BenchmarkError, match="tests of another form"):
        livecodebench(tmp_path, private_test_cases=code).problems("test", None, seed=0)
    assert not Path("bomb").exists()


def test_a_method_without_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=r"another form: KeyError 'func_name'"):
        livecodebench(tmp_path, metadata="{}").problems("test", None, seed=0)
