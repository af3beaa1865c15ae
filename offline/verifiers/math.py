r"""Mathematics by `math-verify`: fractions, roots, sets, intervals, equations, matrices, units and text.

A solution's answer is what its last `\boxed{}` holds (of boxes that only "and", "or" or a comma join, all of them), or
what `math-verify` finds in its text where there is none. Example of a problem that it is for:
"Solve |x - 1| = 2." -> `\boxed{3} or \boxed{-1}`, ground truth `-1, 3`.

Source: https://github.com/huggingface/Math-Verify. Its own time limits use signals, so they are off: this verifier is
run in processes that end when a solution takes too long.
"""

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

from offline.verifiers.base import Verifier, VerifierError
from offline.verifiers.boxed import boxes

# It warns, once per process, that its time limits are off.
logging.getLogger("math_verify").setLevel(logging.ERROR)

JOINED = re.compile(r"[\s$.,;]*(?:and|or|,)[\s$]*(?:[a-z]\s*=\s*)?")
TEXT = re.compile(r"\\(?:text|textbf|textit|mathrm|mbox)\s*\{([^{}]*)\}")
WORDS = re.compile(r"[^\W\d_]{3,}(?:[ '’-]+[^\W\d_]+)*")
NOT_WORDS = re.compile(r"(?:sin|cos|tan|cot|sec|csc|log|ln|exp|abs|sqrt)\b.*")


class Math(Verifier):
    limit_s = 10.0

    def extract(self, solution: str) -> str | None:
        """The answer as the solution writes it."""
        found = boxes(solution)
        if not found:
            parsed = parse(solution, parsing_timeout=None)
            return parsed[-1] if parsed and isinstance(parsed[-1], str) else None
        first = len(found) - 1
        while first > 0 and JOINED.fullmatch(solution[found[first - 1].end + 1 : found[first].mark]):
            first -= 1
        return ", ".join(solution[box.start : box.end].strip() for box in found[first:]) or None

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """
        Raises:
            VerifierError: the ground truth is empty.
        """
        if not ground_truth.strip():
            raise VerifierError("an empty ground truth: give each problem its answer")
        found = boxes(ground_truth)
        truth = ground_truth[found[-1].start : found[-1].end] if found else ground_truth
        return answer is not None and self.same(truth, answer)

    def same(self, a: str, b: str) -> bool:
        first, second = _plain(a), _plain(b)
        # Words are no products of letters: east is not seat.
        if first == second or _is_text(first) or _is_text(second):
            return first.casefold() == second.casefold()
        return bool(verify(_parsed(first), _parsed(second), allow_set_relation_comp=True, timeout_seconds=None))


def _plain(answer: str) -> str:
    return " ".join(TEXT.sub(r" \1 ", answer.strip().strip("$")).split()).rstrip(".")


def _is_text(plain: str) -> bool:
    return WORDS.fullmatch(plain) is not None and NOT_WORDS.fullmatch(plain) is None


@lru_cache(maxsize=1024)
def _parsed(answer: str) -> list[Any]:
    return list(parse(rf"\boxed{{{answer}}}", parsing_timeout=None))
