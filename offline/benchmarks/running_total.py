"""Running-total problems: a question, then statements that set, add to, subtract from or double one number.

    How many cards does Bob have at the end? Now Bob has 13. Bob sells 2. Now Bob has 14. Bob sells 4. Bob finds 6.

(Answer: 16.) Made for the nano pool, by a generator, so there are as many as one likes. A later statement that sets
the number makes all before it irrelevant: how many statements still matter decides the difficulty, and neither the
length of a problem nor its bag of words tells.
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass

from offline.benchmarks.base import Benchmark, BenchmarkError, Problem

STATEMENTS = (5, 6, 7, 8)
LARGEST_START = 20
LARGEST_CHANGE = 9
LARGEST_TOTAL = 49
"""Totals stay within 0..49 all along."""
DOUBLE_SHARE = 0.16
"""How often a change is a doubling, where bounds do not interfere; the rest adds or subtracts, evenly."""

NAMES = ("Ann", "Bob", "Cleo", "Dan")
THINGS = ("apples", "books", "cards", "coins")

Step = tuple[str, int]
"""("=" | "+" | "-" | "*", operand)"""
Wording = tuple[str, list[str]]
"""The question, and a statement per step."""


@dataclass(frozen=True)
class Chain:
    """A problem in its parts."""

    question: str
    statements: list[str]
    steps: list[Step]
    """What each statement does."""

    @property
    def text(self) -> str:
        return " ".join([self.question, *self.statements])


class RunningTotal(Benchmark):
    verifier = "boxed"

    def problems(self, split: str, n: int | None, seed: int) -> list[Problem]:
        if split not in self.splits:
            raise BenchmarkError(f"running_total has no split {split!r}: choose one of {', '.join(self.splits)}")
        if n is None:
            raise BenchmarkError("running_total makes problems without end: say how many, such as --split train=3000")
        rng = random.Random(f"{split}/{seed}")  # noqa: S311 - problems, not secrets
        problems: dict[str, Problem] = {}
        while len(problems) < n:
            chain = draw(rng)
            text = chain.text
            if self.split_of(text) == split and text not in problems:
                problems[text] = Problem(f"{split}-{seed}-{len(problems)}", split, text, str(total(chain.steps)))
        return list(problems.values())

    @classmethod
    def split_of(cls, text: str) -> str:
        """The text alone decides its split, so that splits share no problem even between seeds."""
        return cls.splits[_hash(text) % len(cls.splits)]


def draw(rng: random.Random) -> Chain:
    """Any problem, of whatever split."""
    steps = _steps(rng)
    return Chain(*rng.choice(STYLES)(steps, rng), steps)


def total(steps: list[Step]) -> int:
    """The number that the steps end with."""
    value = 0
    for step in steps:
        value = apply(value, step)
    return value


def apply(value: int, step: Step) -> int:
    """What a total becomes by one step."""
    kind, operand = step
    return {"=": operand, "+": value + operand, "-": value - operand, "*": value * operand}[kind]


def _steps(rng: random.Random) -> list[Step]:
    """One statement starts, a second one starts anew at a random place, all others change the number."""
    n = rng.choice(STATEMENTS)
    starts = (0, rng.randint(1, n - 1))
    steps: list[Step] = []
    value = 0
    for index in range(n):
        step = ("=", rng.randint(1, LARGEST_START)) if index in starts else _change(value, rng)
        value = apply(value, step)
        steps.append(step)
    return steps


def _change(value: int, rng: random.Random) -> Step:
    while True:
        (kind,) = rng.choices("*+-", (DOUBLE_SHARE, (1 - DOUBLE_SHARE) / 2, (1 - DOUBLE_SHARE) / 2))
        step = (kind, 2 if kind == "*" else rng.randint(1, LARGEST_CHANGE))
        if 0 <= apply(value, step) <= LARGEST_TOTAL:
            return step


def _plain(steps: list[Step], rng: random.Random) -> Wording:
    forms = {
        "=": ("Begin with {}.", "Take {}."),
        "+": ("Add {}.", "Increase it by {}."),
        "-": ("Subtract {}.", "Decrease it by {}."),
        "*": ("Double it.", "Multiply it by 2."),
    }
    question = rng.choice(("Find the final number.", "What number do we end with?"))
    return question, [rng.choice(forms[kind]).format(operand) for kind, operand in steps]


def _story(steps: list[Step], rng: random.Random) -> Wording:
    name, things = rng.choice(NAMES), rng.choice(THINGS)
    forms = {
        "=": ("Now {name} has {}.",),
        "+": ("{name} buys {}.", "{name} finds {}."),
        "-": ("{name} loses {}.", "{name} sells {}."),
        "*": ("{name} doubles them.",),
    }
    question = f"How many {things} does {name} have at the end?"
    return question, [rng.choice(forms[kind]).format(operand, name=name) for kind, operand in steps]


def _code(steps: list[Step], rng: random.Random) -> Wording:
    forms = {"=": "x = {};", "+": "x += {};", "-": "x -= {};", "*": "x *= {};"}
    return "What is x at the end?", [forms[kind].format(operand) for kind, operand in steps]


STYLES: tuple[Callable[[list[Step], random.Random], Wording], ...] = (_plain, _story, _code)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
