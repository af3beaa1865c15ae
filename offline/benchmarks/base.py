"""What a benchmark is: problems by split and seed, how one is put to a model, and how an answer is checked.

One benchmark is one file, whose name is the benchmark's name:

    from offline.benchmarks.base import load
    problems = load("running_total").problems("test", n=200, seed=0)

Most are data sets of the Hub, see `offline/dataset_benchmark.py`.
"""

import difflib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import offline.benchmarks

Message = dict[str, str]


class BenchmarkError(ValueError):
    """Unknown benchmark or split, more problems than there are, data of another form; the message names the fix."""


@dataclass(frozen=True)
class Source:
    """Where problems are read from, as far as it is not the benchmark's own place."""

    dataset: str | None = None
    """A repository of the Hub (owner/name) or a folder of the same form; for `file`, a file."""
    config: str | None = None
    """Of the repository; several are parted by commas."""
    revision: str | None = None
    """Of the repository: a branch, a tag or a commit."""
    verifier: str | None = None
    """This one and the columns are for `file` alone."""
    question_column: str | None = None
    answer_column: str | None = None
    id_column: str | None = None
    split_column: str | None = None


@dataclass(frozen=True)
class Problem:
    problem_id: str
    """Unique in its benchmark, over all splits and seeds."""
    split: str
    problem: str
    """What the model is asked."""
    ground_truth: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of it, such as its level; what JSON can hold."""


class Benchmark(ABC):
    verifier: str
    """The name of what checks its answers: a file of `offline/verifiers/`."""
    splits: tuple[str, ...] = ("train", "validation", "test")
    suffix: str = ""
    """What the user's turn says after the problem."""

    def __init__(self, source: Source | None = None) -> None:
        """
        Raises:
            BenchmarkError: it does not take such a source.
        """
        if source not in (None, Source()):
            raise BenchmarkError(f"{type(self).__name__} makes its own problems: leave out --dataset and its columns")

    @abstractmethod
    def problems(self, split: str, n: int | None, seed: int) -> list[Problem]:
        """The first n problems of a split, None: all. No problem stands in two splits, whatever the seeds.

        Raises:
            BenchmarkError: no such split, or it has fewer than n problems.
            OSError: the data cannot be read now.
        """

    def messages(self, problem: Problem) -> list[Message]:
        """The conversation that asks the problem, in OpenAI's form."""
        return [{"role": "user", "content": problem.problem + self.suffix}]

    def provenance(self) -> dict[str, Any]:
        """What is on record of where the problems come from; empty where this file alone makes them."""
        return {}

    @property
    def notes(self) -> list[str]:
        """What a reader must know of the problems read so far, a sentence each."""
        return []


def names() -> list[str]:
    """Every benchmark there is: the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(offline.benchmarks.__path__) if module.name != "base")


def load(name: str, source: Source | None = None) -> Benchmark:
    """The benchmark of `offline/benchmarks/<name>.py`.

    Raises:
        BenchmarkError: no such benchmark, or it does not take such a source.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(names())}"
        raise BenchmarkError(f"unknown benchmark {name!r}: {hint}")
    module = import_module(f"offline.benchmarks.{name}")
    benchmark: Benchmark = getattr(module, "".join(part.capitalize() for part in name.split("_")))(source)
    return benchmark
