"""The problems that rollouts are asked for: `--benchmark`, `--split`, and where problems are read."""

import hashlib
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Mapping
from typing import Any

from offline.benchmarks.base import Benchmark, BenchmarkError, Problem, Source, load, names

ALL = "all"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--benchmark", required=True, metavar="NAME", help=", ".join(names()))
    parser.add_argument(
        "--split",
        required=True,
        action="append",
        metavar="NAME=N",
        help="N problems of a split, or `all`; may be repeated",
    )
    group = parser.add_argument_group("where the benchmark's problems are read")
    for option, metavar, text in (
        ("--dataset", "REPO|FOLDER|FILE", "another repository of the Hub (owner/name), or a folder of the same form"),
        ("--dataset-config", "NAME", "a configuration of it, such as a language; several are parted by commas"),
        ("--revision", "NAME", "a branch, tag or commit of the repository (default: main)"),
    ):
        group.add_argument(option, metavar=metavar, help=text)
    group = parser.add_argument_group("for --benchmark file")
    for option, metavar, text in (
        ("--verifier", "NAME", "what checks its answers"),
        ("--question-column", "NAME", "what is asked; --dataset FILE is parquet, jsonl or csv"),
        ("--answer-column", "NAME", "the right answer"),
        ("--id-column", "NAME", "the problem's id (default: by its text)"),
        ("--split-column", "NAME", "its split (default: by its text)"),
    ):
        group.add_argument(option, metavar=metavar, help=text)


def benchmark(args: Namespace) -> Benchmark:
    """
    Raises:
        BenchmarkError: there is none of this name, or it does not take these options.
    """
    source = Source(
        dataset=args.dataset,
        config=args.dataset_config,
        revision=args.revision,
        verifier=args.verifier,
        question_column=args.question_column,
        answer_column=args.answer_column,
        id_column=args.id_column,
        split_column=args.split_column,
    )
    return load(args.benchmark, source)


def problems(benchmark: Benchmark, splits: Mapping[str, str], seed: int) -> list[Problem]:
    """
    Args:
        splits: how many problems of each, as a number or `all`.

    Raises:
        BenchmarkError: a number is none, or the benchmark has no such problems.
        OSError: its data cannot be read now.
    """
    for n in splits.values():
        if n != ALL and not (n.isascii() and n.isdigit() and int(n) > 0):
            raise BenchmarkError("--split wants a positive number of problems or `all`, such as --split train=3000")
    return [
        problem
        for split, n in splits.items()
        for problem in benchmark.problems(split, None if n == ALL else int(n), seed)
    ]


def fingerprint(problems: Iterable[Problem]) -> str:
    """SHA-256 over what is asked and what is right, so that rollouts of other data are told from these."""
    digest = hashlib.sha256()
    for problem in problems:
        facts = [problem.problem_id, problem.split, problem.problem, problem.ground_truth]
        digest.update(json.dumps(facts).encode() + b"\n")
    return digest.hexdigest()


def metadata_text(metadata: Mapping[str, Any]) -> str | None:
    """As rollouts keep it: a JSON object; None where there is nothing."""
    return json.dumps(dict(metadata), ensure_ascii=False, default=str) if metadata else None
