import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import chi2_contingency

from offline.benchmarks.base import BenchmarkError, load
from offline.verifiers.base import load as load_verifier

REFERENCE = Path(__file__).parent.parent.parent / "shared" / "data" / "nano_pool" / "problems.jsonl"
"""Problems in the wording that the nano models were trained on."""

FORMS = {
    r"x = (\d+);|Now \w+ has (\d+)\.|Take (\d+)\.|Begin with (\d+)\.": "=",
    r"x \+= (\d+);|\w+ buys (\d+)\.|\w+ finds (\d+)\.|Add (\d+)\.|Increase it by (\d+)\.": "+",
    r"x -= (\d+);|\w+ sells (\d+)\.|\w+ loses (\d+)\.|Subtract (\d+)\.|Decrease it by (\d+)\.": "-",
    r"x \*= (2);|\w+ doubles them()\.|Double it()\.|Multiply it by (2)\.": "*",
}


def read(problem: str) -> list[tuple[str, int]]:
    """The statements of a problem, read from its text alone."""
    _, body = re.fullmatch(r"(.*?[?]|Find the final number[.]) (.*)", problem).groups()  # type: ignore[union-attr]  # a match, or the test fails
    steps = []
    for statement in re.findall(r"[^.;]+[.;]", body):
        ((kind, operand),) = [
            (kind, next((int(group) for group in match.groups() if group), 2))
            for form, kind in FORMS.items()
            if (match := re.fullmatch(form, statement.strip()))
        ]
        steps.append((kind, operand))
    return steps


def totals(steps: list[tuple[str, int]]) -> list[int]:
    value, after = 0, []
    for kind, operand in steps:
        value = (
            operand if kind == "=" else value + operand if kind == "+" else value - operand if kind == "-" else value
        )
        value = 2 * value if kind == "*" else value
        after.append(value)
    return after


def effective_steps(steps: list[tuple[str, int]]) -> int:
    return [kind for kind, _ in reversed(steps)].index("=")


@pytest.fixture(scope="module")
def generated() -> list[str]:
    problems = load("running_total").problems("train", 6000, seed=3)
    for problem in problems:
        after = totals(read(problem.problem))
        assert problem.ground_truth == str(after[-1]), problem
        assert min(after) >= 0
        assert max(after) <= 49
    return [problem.problem for problem in problems]


@pytest.fixture(scope="module")
def reference() -> list[str]:
    if not REFERENCE.exists():
        pytest.skip(f"{REFERENCE} is absent")
    rows = [json.loads(line) for line in REFERENCE.read_text().splitlines()]
    for row in rows:
        steps = read(row["problem"])
        assert row["ground_truth"] == str(totals(steps)[-1])
        assert row["effective_steps"] == effective_steps(steps)
    return [row["problem"] for row in rows]


def test_equal_seeds_give_equal_problems_and_more_begin_with_fewer() -> None:
    benchmark = load("running_total")
    assert benchmark.problems("test", 50, seed=1) == benchmark.problems("test", 200, seed=1)[:50]


def test_splits_and_seeds_share_no_problem() -> None:
    benchmark = load("running_total")
    problems = [p for split in benchmark.splits for seed in (0, 1, 2) for p in benchmark.problems(split, 1500, seed)]
    texts = [problem.problem for problem in problems]
    assert len(set(texts)) == len(texts)
    assert len({problem.problem_id for problem in problems}) == len(problems)


def test_the_conversation_is_the_problem_alone() -> None:
    benchmark = load("running_total")
    (problem,) = benchmark.problems("validation", 1, seed=0)
    assert benchmark.messages(problem) == [{"role": "user", "content": problem.problem}]
    verifier = load_verifier(benchmark.verifier)
    assert verifier.is_correct(verifier.extract(rf"so \boxed{{{problem.ground_truth}}}"), problem.ground_truth)


def test_unknown_names_are_refused_with_the_valid_ones() -> None:
    with pytest.raises(BenchmarkError, match="did you mean 'running_total'"):
        load("runing_total")
    with pytest.raises(BenchmarkError, match="train, validation, test"):
        load("running_total").problems("dev", 1, seed=0)


def style(problem: str) -> str:
    return "code" if "x =" in problem else "story" if "Now" in problem else "plain"


def sentence_forms(problem: str) -> list[str]:
    return (
        re.sub(r"\d+", "N", problem).replace("by N.", "by N.\n").replace(". ", ".\n").replace("; ", ";\n").split("\n")
    )


FEATURES: dict[str, Callable[[str], Iterable[Any]]] = {
    "style": lambda problem: [style(problem)],
    "statements": lambda problem: [(style(problem), len(read(problem)))],
    "effective steps": lambda problem: [(len(read(problem)), effective_steps(read(problem)))],
    "kinds of statement": lambda problem: [kind for kind, _ in read(problem)],
    "operands": lambda problem: [step for step in read(problem) if step[0] != "="],
    "starting numbers": lambda problem: [(index > 0, n) for index, (k, n) in enumerate(read(problem)) if k == "="],
    "totals": lambda problem: totals(read(problem)),
    "answers": lambda problem: totals(read(problem))[-1:],
    "first words": lambda problem: sentence_forms(problem),
}


@pytest.mark.parametrize("feature", FEATURES)
def test_problems_are_distributed_like_those_the_models_learnt(
    feature: str, generated: list[str], reference: list[str]
) -> None:
    ours, theirs = (Counter(v for p in problems for v in FEATURES[feature](p)) for problems in (generated, reference))
    values = sorted({*ours, *theirs}, key=str)
    common = [value for value in values if ours[value] + theirs[value] >= 10]
    p_value = chi2_contingency([[counts[value] for value in common] for counts in (ours, theirs)]).pvalue
    # Values within one problem hang together, so the test errs towards finding differences.
    assert p_value > 1e-3, (feature, p_value)
    share = {value: ours[value] / ours.total() - theirs[value] / theirs.total() for value in values}
    assert max(map(abs, share.values())) < 0.02, share


def test_the_vocabulary_is_the_models(generated: list[str], reference: list[str]) -> None:
    def words(problems: list[str]) -> set[str]:
        return {word for problem in problems for word in re.findall(r"\d+|\w+|[^\w\s]+", problem)}

    def forms(problems: list[str]) -> set[str]:
        return {form for problem in problems for form in sentence_forms(problem)}

    assert words(generated) == words(reference)
    assert forms(generated) == forms(reference)
