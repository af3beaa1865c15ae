"""What `pika rollouts` is asked to sample, from its arguments and the pool's configuration; and the rows it makes."""

from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from offline import rollout_problems
from offline.benchmarks.base import Benchmark, Problem
from offline.rollout_arms import pairs, sampled_arms
from offline.rollout_store import costs
from offline.samplers import Job, Key, Sample, SampledArm, job_seed
from offline.verifiers.grading import Graded, grade_all, pass_at_k
from server import config
from server.sections import pool


@dataclass(frozen=True)
class Run:
    """What to sample."""

    benchmark_name: str
    benchmark: Benchmark
    problems: dict[tuple[str, str], Problem]
    """By (split, problem_id)."""
    splits: dict[str, int]
    data: dict[str, Any]
    """Where the problems come from, and their SHA-256; empty where the benchmark alone makes them."""
    arms: dict[str, SampledArm]
    prices: dict[str, pool.Prices]
    """By arm."""
    runner: str
    k: int
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the samples; prices are applied at the end."""
        arms = {
            name: {"model": arm.model, "source": arm.reference, "engine_args": list(arm.engine_args), **arm.fields}
            for name, arm in self.arms.items()
        }
        for name, arm in self.arms.items():
            prompts = {"system_prompt": arm.system_prompt, "prompt_suffix": arm.prompt_suffix}
            arms[name] |= {field: text for field, text in prompts.items() if text}
        return {
            "benchmark": self.benchmark_name,
            "splits": self.splits,
            **({"data": self.data} if self.data else {}),
            "arms": arms,
            "k": self.k,
            "seed": self.seed,
            "runner": self.runner,
        }

    def jobs(self, done: Iterable[Key]) -> list[Job]:
        """What is left to do, arm by arm."""
        finished = set(done)
        return [
            Job(arm, split, problem_id, self.benchmark.messages(problem), job_seed(self.seed, problem_id))
            for arm in self.arms.values()
            for (split, problem_id), problem in self.problems.items()
            if (arm.name, split, problem_id) not in finished
        ]

    def rows(
        self, samples: Mapping[Key, Sample], on_verified: Callable[[int], None] = lambda rows: None
    ) -> list[dict[str, Any]]:
        """Verified and priced, in the order of arms and problems.

        Args:
            on_verified: told how many more rows are verified.

        Raises:
            VerifierError: a ground truth is of no form that the benchmark's verifier compares with.
        """
        pairs = [
            (problem, samples[arm, split, problem_id])
            for arm in self.arms
            for (split, problem_id), problem in self.problems.items()
        ]
        items = [(sample.solutions, problem.ground_truth) for problem, sample in pairs]
        graded = grade_all(self.benchmark.verifier, items, on_done=on_verified)
        return [self._row(*pair, one) for pair, one in zip(pairs, graded, strict=True)]

    def _row(self, problem: Problem, sample: Sample, graded: Graded) -> dict[str, Any]:
        arm, correct = self.arms[sample.arm], sum(graded.correct)
        return {
            "problem_id": problem.problem_id,
            "split": problem.split,
            "benchmark": self.benchmark_name,
            "problem": problem.problem,
            "formatted_prompt": sample.formatted_prompt,
            "ground_truth": problem.ground_truth,
            "arm": arm.name,
            "model": arm.model,
            "k": self.k,
            "temperature": arm.fields["temperature"],
            "max_tokens": arm.max_tokens,
            "seed": self.seed,
            "generated_solutions": sample.solutions,
            "extracted_answers": graded.answers,
            "correct": graded.correct,
            "success_rate": correct / self.k,
            "pass_at_k": pass_at_k(self.k, correct, self.k),
            "majority_vote_answer": graded.majority_vote_answer,
            "majority_vote_is_correct": graded.majority_vote_is_correct,
            "input_tokens": sample.input_tokens,
            "output_tokens": sample.output_tokens,
            **costs(self.prices[sample.arm], sample.input_tokens, sample.output_tokens),
            "truncated": sample.truncated,
            "metadata": rollout_problems.metadata_text(problem.metadata),
        }

    def priced(self, table: pa.Table) -> pa.Table:
        """Finished rollouts of these settings, at today's prices."""
        rows = zip(*(table[name].to_pylist() for name in ("arm", "input_tokens", "output_tokens")), strict=True)
        priced = pa.Table.from_pylist([costs(self.prices[arm], *tokens) for arm, *tokens in rows])
        for name in priced.column_names:
            table = table.set_column(table.column_names.index(name), name, priced[name])
        return table


def plan(args: Namespace) -> Run:
    """The run that the command's arguments ask for.

    Raises:
        UsageError, BenchmarkError, ConfigError: an argument or the configuration is wrong; names it.
        OSError: the benchmark's data cannot be read now.
    """
    settings = config.load(args.config)
    benchmark = rollout_problems.benchmark(args)
    splits = pairs(args.split, "--split train=3000")
    arms = sampled_arms(settings, args)
    # Last, for data may come from far away.
    problems = rollout_problems.problems(benchmark, splits, args.seed)
    source = benchmark.provenance()
    return Run(
        benchmark_name=args.benchmark,
        benchmark=benchmark,
        problems={(problem.split, problem.problem_id): problem for problem in problems},
        splits=dict(Counter(problem.split for problem in problems)),
        data={**source, "sha256": rollout_problems.fingerprint(problems)} if source else {},
        arms=arms,
        prices={name: settings.models[arm.model].usd_per_million_tokens for name, arm in arms.items()},
        runner=args.runner,
        k=args.k,
        seed=args.seed,
    )
