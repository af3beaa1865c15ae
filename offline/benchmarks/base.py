"""What a benchmark is: problems by split and seed, how one is put to a model, and how an answer is checked.

One benchmark is one file, whose name is the benchmark's name:

    from offline.benchmarks.base import load
    problems = load("running_total").problems("test", n=200, seed=0)
"""

import difflib
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from importlib import import_module
from typing import ClassVar

import offline.benchmarks

Message = dict[str, str]


class BenchmarkError(ValueError):
    """Unknown benchmark or split, or more problems than there are; the message names the fix."""


@dataclass(frozen=True)
class Problem:
    problem_id: str
    """Unique in its benchmark, over all splits and seeds."""
    split: str
    problem: str
    """What the model is asked."""
    ground_truth: str


class Benchmark(ABC):
    verifier: ClassVar[str]
    """The name of what checks its answers: a file of `offline/verifiers/`."""
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")

    @abstractmethod
    def problems(self, split: str, n: int, seed: int) -> list[Problem]:
        """The first n problems of a split. No problem stands in two splits, whatever the seeds.

        Raises:
            BenchmarkError: no such split, or it has fewer than n problems.
        """

    def messages(self, problem: Problem) -> list[Message]:
        """The conversation that asks the problem, in OpenAI's form."""
        return [{"role": "user", "content": problem.problem}]


def names() -> list[str]:
    """Every benchmark there is: the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(offline.benchmarks.__path__) if module.name != "base")


def load(name: str) -> Benchmark:
    """The benchmark of `offline/benchmarks/<name>.py`.

    Raises:
        BenchmarkError: no such benchmark.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names())}"
        raise BenchmarkError(f"unknown benchmark {name!r}: {hint}")
    module = import_module(f"offline.benchmarks.{name}")
    benchmark: Benchmark = getattr(module, "".join(part.capitalize() for part in name.split("_")))()
    return benchmark
