r"""A number in `\boxed{}`, as mathematics prompts ask for: the last one of a solution counts."""

import re
from dataclasses import dataclass

from offline.verifiers.base import Verifier, VerifierError

TOKEN = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
# ASCII digits on purpose: \d would take other scripts' digits too.
NUMBER = re.compile(r"([+-]?)([0-9]{1,3}(?:,[0-9]{3})+|[0-9]*)(?:\.([0-9]*))?")
DECORATION = re.compile(r"\\[!,;: ]|[\s$]")
r"""Spaces, dollar signs and LaTeX's thin spaces inside the box."""


class Boxed(Verifier):
    def extract(self, solution: str) -> str | None:
        content = last_boxed(solution)
        return None if content is None else number(content)

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """
        Raises:
            VerifierError: the ground truth is no number.
        """
        truth = number(ground_truth)
        if truth is None:
            raise VerifierError(f"the ground truth {ground_truth!r} is no number")
        return answer == truth


@dataclass(frozen=True)
class Box:
    r"""One `\boxed{...}` of a text: text[start:end] is what it holds."""

    mark: int
    """Where its backslash stands."""
    start: int
    end: int


def boxes(text: str) -> list[Box]:
    """All boxes that are closed, in the order of their marks, nested braces and all."""
    opened: list[re.Match[str]] = []
    closed: list[Box] = []
    for token in TOKEN.finditer(text):
        if token[0] == "}" and opened:
            start = opened.pop()
            if start[0] != "{":
                closed.append(Box(start.start(), start.end(), token.start()))
        elif token[0] == "{" or token["box"]:
            opened.append(token)
    return sorted(closed, key=lambda box: box.mark)


def last_boxed(solution: str) -> str | None:
    r"""What stands in the last closed `\boxed{...}`; None where none is closed."""
    found = boxes(solution)
    return solution[found[-1].start : found[-1].end] if found else None


def number(text: str) -> str | None:
    """The shortest decimal form of a number ("+007.50" -> "7.5", "1,200" -> "1200"); None where it is none.

    Digits are never rounded.
    """
    match = NUMBER.fullmatch(DECORATION.sub("", text))
    if match is None:
        return None
    sign, whole, fraction = match[1], match[2].replace(",", ""), match[3] or ""
    if not whole + fraction:
        return None
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    shortest = f"{whole}.{fraction}" if fraction else whole
    return f"-{shortest}" if sign == "-" and shortest != "0" else shortest
