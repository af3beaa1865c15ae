"""All problems of a benchmark."""

from offline.benchmarks.base import Benchmark, Problem

MADE = ("running_total",)
"""Benchmarks that make their problems, without end."""


def everything(benchmark: Benchmark, seed: int = 0) -> list[Problem]:
    n = 40 if type(benchmark).__module__.endswith(MADE) else None
    return [problem for split in benchmark.splits for problem in benchmark.problems(split, n, seed)]
