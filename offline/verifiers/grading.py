"""Answers found, judged and counted: for each problem what its solutions say, and what most of them say."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from offline.verifiers import process_pool
from offline.verifiers.base import Verifier, load

logger = logging.getLogger(__name__)
_loaded = cache(load)

Item = tuple[Sequence[str], str]
"""(solutions, ground truth) of one problem."""


@dataclass(frozen=True)
class Graded:
    """The solutions of one problem, in their order."""

    answers: list[str | None]
    correct: list[bool]
    majority_vote_answer: str | None
    majority_vote_is_correct: bool
    given_up: int = 0
    """Solutions that took too long or crashed the verifier. They count as wrong, without an answer."""


def grade(verifier: Verifier, solutions: Sequence[str], ground_truth: str) -> Graded:
    """Grade the solutions of one problem in this process, without a time limit.

    Raises:
        VerifierError: the ground truth is of no form that the verifier compares with.
    """
    verifier.is_correct(None, ground_truth)  # for its error, though there be no solutions
    answers = [verifier.extract(solution) for solution in solutions]
    correct = [verifier.is_correct(answer, ground_truth) for answer in answers]
    return _graded(answers, correct, majority_vote(answers, verifier.same))


def grade_all(
    verifier_name: str,
    items: Sequence[Item],
    workers: int | None = None,
    on_done: Callable[[int], None] = lambda problems: None,
) -> list[Graded]:
    """Grade many problems: the same result, in their order, whatever the number of workers.

    A solution that takes longer than the verifier's limit, or crashes it, is wrong; a warning says how many did.

    Args:
        workers: processes; default: one per core. Quick verifiers start none.
        on_done: told how many more problems are done, for a progress bar.

    Raises:
        VerifierError: no such verifier, or a ground truth is of no form that it compares with.
        OSError: programs under test cannot be run, for want of disk or processes.
    """
    verifier = load(verifier_name)
    if verifier.limit_s is not None:
        for _, ground_truth in items:
            verifier.is_correct(None, ground_truth)
        # Of the machine's cores, those that this process may use.
        workers = workers or len(os.sched_getaffinity(0))
        return _grade_in_processes(verifier_name, verifier.limit_s, items, workers, on_done)
    graded = []
    for solutions, ground_truth in items:
        graded.append(grade(verifier, solutions, ground_truth))
        on_done(1)
    return graded


def _grade_in_processes(
    name: str, limit_s: float, items: Sequence[Item], workers: int, on_done: Callable[[int], None]
) -> list[Graded]:
    answers: list[list[str | None]] = [[None] * len(solutions) for solutions, _ in items]
    correct = [[False] * len(solutions) for solutions, _ in items]
    given_up = [0] * len(items)
    left = [len(solutions) for solutions, _ in items]
    on_done(left.count(0))
    where = [(item, index) for item, (solutions, _) in enumerate(items) for index in range(len(solutions))]
    calls = [(name, items[item][0][index], items[item][1]) for item, index in where]
    for call, result in process_pool.each(f"{__name__}:judge", calls, workers, limit_s):
        item, index = where[call]
        if result is None:
            given_up[item] += 1
        else:
            answers[item][index], correct[item][index] = result
        left[item] -= 1
        if left[item] == 0:
            on_done(1)
    if any(given_up):
        logger.warning(
            "%d of %d solutions took over %g CPU seconds, or crashed: wrong", sum(given_up), len(calls), limit_s
        )
    winners = [majority_vote(one) for one in answers]
    disputed = [item for item, one in enumerate(answers) if len({*one} - {None}) > 1]
    votes = [(name, answers[item]) for item in disputed]
    for call, result in process_pool.each(f"{__name__}:vote", votes, workers, limit_s):
        if result is not None:  # else only equal texts count as equal
            winners[disputed[call]] = result
    return [_graded(*one) for one in zip(answers, correct, winners, given_up, strict=True)]


def _graded(answers: list[str | None], correct: list[bool], winner: int | None, given_up: int = 0) -> Graded:
    if winner is None:
        return Graded(answers, correct, None, False, given_up)
    return Graded(answers, correct, answers[winner], correct[winner], given_up)


def judge(name: str, solution: str, ground_truth: str) -> tuple[str | None, bool]:
    """(answer, whether it is right)."""
    verifier = _loaded(name)
    answer = verifier.extract(solution)
    return answer, verifier.is_correct(answer, ground_truth)


def vote(name: str, answers: Sequence[str | None]) -> int | None:
    return majority_vote(answers, _loaded(name).same)


def majority_vote(answers: Sequence[str | None], same: Callable[[str, str], bool] = lambda a, b: a == b) -> int | None:
    """The index of the answer that most solutions give: where it stands first; of several, the earliest.

    None where no solution gives any.
    """
    groups: dict[str, list[int]] = {}  # by the text of a group's first answer
    texts: dict[str, str] = {}  # of each answer seen, its group's
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        if answer not in texts:
            texts[answer] = next((first for first in groups if same(first, answer)), answer)
        groups.setdefault(texts[answer], []).append(index)
    # max takes the first of equals, and a dict keeps the order of first appearance.
    return max(groups.values(), key=len)[0] if groups else None


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that at least one of k answers is right, unbiased, from n answers of which some are correct.

    1 - C(n - correct, k) / C(n, k). Source: Chen et al., Evaluating Large Language Models Trained on Code, 2021.

    Raises:
        ValueError: undefined: fewer than k answers, or counts that cannot be.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {n} answers, {correct} of them correct, is undefined")
    return 1 - math.comb(n - correct, k) / math.comb(n, k)
