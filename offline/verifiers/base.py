"""What a verifier is: it finds the answer in a solution's text and says whether it is right.

One verifier is one file, whose name is the verifier's name:

    from offline.verifiers.base import load
    numeric = load("numeric")
    numeric.is_correct(numeric.extract("She earns $18.50 per day."), "18.5")
"""

import difflib
import pkgutil
from abc import ABC, abstractmethod
from importlib import import_module
from typing import ClassVar

import offline.verifiers

NO_VERIFIERS = {"base", "code_child", "confine", "grading", "process_pool", "sandbox"}
"""Files of this package that are parts of others."""


class VerifierError(ValueError):
    """No such verifier, or a ground truth that it cannot compare with; the message names the fix."""


class Verifier(ABC):
    limit_s: ClassVar[float | None] = None
    """CPU seconds that one solution may take. A verifier with a limit is run in processes that can be ended. None: it
    is quick whatever the text, and runs where it is called."""

    @abstractmethod
    def extract(self, solution: str) -> str | None:
        """The answer that the solution gives; None where there is none."""

    @abstractmethod
    def is_correct(self, answer: str | None, ground_truth: str) -> bool:
        """Whether an extracted answer is right. No answer is a wrong answer.

        Raises:
            VerifierError: the ground truth is of no form that this verifier compares with, whatever the answer.
        """

    def same(self, a: str, b: str) -> bool:
        """Whether two extracted answers are one and the same: a majority vote counts them together."""
        return a == b


def names() -> list[str]:
    """Every verifier there is: the files of this package."""
    modules = {module.name for module in pkgutil.iter_modules(offline.verifiers.__path__)}
    return sorted(modules - NO_VERIFIERS)


def load(name: str) -> Verifier:
    """The verifier of `offline/verifiers/<name>.py`.

    Raises:
        VerifierError: no such verifier.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names())}"
        raise VerifierError(f"unknown verifier {name!r}: {hint}")
    module = import_module(f"offline.verifiers.{name}")
    verifier: Verifier = getattr(module, name.capitalize())()
    return verifier
