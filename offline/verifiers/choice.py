r"""A letter among choices: "The answer is (B)", `\boxed{B}`, "Answer: B", or the letter alone; the last one counts."""

import re

from offline.verifiers.base import Verifier, VerifierError

WRAPPED = r"(?:\\(?:text|textbf|mathrm|mathbf|boxed)\s{0,8}\{|[*_$({\[\s]){0,8}"
r"""What may stand before the letter: `**`, `(`, `$`, `\text{` and the like."""
LETTER = r"(?P<letter>[A-Z])(?![\w'’])"
# "The answer is A train" names no choice; "the answer is A because" does.
NO_ARTICLE = r"(?!(?<=[AI])[ \t]{1,8}(?!because|since|as\b|for\b|and\b|which\b)[a-z])"
GAP = r"\s{0,8}"
GIVEN = re.compile(
    rf"""\\boxed{GAP}\{{{WRAPPED}(?P<boxed>[A-Za-z])(?![\w'’])
    | ^\#\#\#\#{WRAPPED}(?P<marked>[A-Za-z])(?![\w'’])
    | (?i:\b(?:answer|choice|option)\b(?:\s(?:choice|option))?)[*_]{{0,3}}{GAP}
      (?i:(?:is|would\sbe|should\sbe|must\sbe)\b|[:=]){GAP}:?{WRAPPED}
      (?i:(?:the\s)?(?:choice|option|letter)\b)?{WRAPPED}(?:{LETTER}{NO_ARTICLE}|(?<=\()(?P<bracketed>[a-z])\))""",
    re.MULTILINE | re.VERBOSE,
)
ALONE = re.compile(rf"{WRAPPED}([A-Za-z])[*_$)}}\]]{{0,8}}(?:[.:)].*)?", re.DOTALL)
"""A solution that begins with the letter and goes on, if at all, with a mark: "B", "(b)", "C. Because"."""


class Choice(Verifier):
    def extract(self, solution: str) -> str | None:
        """The letter, as a capital."""
        given = list(GIVEN.finditer(solution))
        if given:
            return next(letter for letter in given[-1].groups() if letter).upper()
        alone = ALONE.fullmatch(solution.strip())
        return alone[1].upper() if alone else None

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """
        Raises:
            VerifierError: the ground truth is no letter.
        """
        truth = ground_truth.strip().strip("().").upper()
        if not re.fullmatch("[A-Z]", truth):
            raise VerifierError(f"the ground truth {ground_truth!r} is no letter of a choice, such as B")
        return answer == truth
