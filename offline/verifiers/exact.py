r"""The same text, but for case, space, and marks around it; of a solution, its `\boxed{}`, "Answer:" or last line."""

import re
import unicodedata

from offline.verifiers.base import Verifier, VerifierError
from offline.verifiers.boxed import last_boxed

MARKED = re.compile(
    r"^[^\w\n]*(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is\b\s*:?|:)|####)(.*\S.*)$", re.IGNORECASE | re.MULTILINE
)
AROUND = " \t\n*_`\"'“”‘’.,;:!?"


class Exact(Verifier):
    def extract(self, solution: str) -> str | None:
        """The answer in its normal form."""
        marked = MARKED.findall(solution)
        boxed = last_boxed(solution)
        found = boxed if boxed is not None else marked[-1] if marked else (solution.strip().splitlines() or [""])[-1]
        return normalised(found) or None

    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """
        Raises:
            VerifierError: nothing is left of the ground truth in its normal form.
        """
        truth = normalised(ground_truth)
        if not truth:
            raise VerifierError(f"the ground truth {ground_truth!r} has no text to compare with")
        return answer == truth


def normalised(text: str) -> str:
    """One spelling of letters (NFKC, case folded), single spaces, no marks at either end."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(AROUND)
