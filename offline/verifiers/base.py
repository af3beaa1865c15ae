"""What a verifier is: it finds the answer in a solution's text and says whether it is right."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence


class Verifier(ABC):
    @abstractmethod
    def extract(self, solution: str) -> str | None:
        """The answer in its normal form, so that equal answers are equal strings; None where there is none."""

    @abstractmethod
    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """Whether an extracted answer is right. No answer is a wrong answer."""


def majority_vote(answers: Sequence[str | None]) -> str | None:
    """The answer most solutions give, the earliest of several; None only where no solution gives any."""
    votes = Counter(answer for answer in answers if answer is not None)
    # Counter keeps the order of first appearance, and max takes the first of equals.
    return max(votes, key=lambda answer: votes[answer], default=None)
