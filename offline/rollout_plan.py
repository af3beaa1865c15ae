"""What `pika rollouts` is asked to sample, from its arguments and the pool's configuration; and the rows it makes."""

from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from offline.benchmarks.base import Benchmark, Problem, load
from offline.rollout_arms import UsageError, pairs, sampled_arms
from offline.samplers import Job, Key, Sample, SampledArm, job_seed
from offline.verifiers.base import majority_vote
from server import config, sections


@dataclass(frozen=True)
class Run:
    """What to sample."""

    benchmark_name: str
    benchmark: Benchmark
    problems: dict[tuple[str, str], Problem]
    """By (split, problem_id)."""
    splits: dict[str, int]
    arms: dict[str, SampledArm]
    prices: dict[str, sections.Prices]
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

    def rows(self, samples: Mapping[Key, Sample]) -> list[dict[str, Any]]:
        """Verified and priced, in the order of arms and problems."""
        return [
            self._row(problem, samples[arm, split, problem_id])
            for arm in self.arms
            for (split, problem_id), problem in self.problems.items()
        ]

    def _row(self, problem: Problem, sample: Sample) -> dict[str, Any]:
        arm, verifier = self.arms[sample.arm], self.benchmark.verifier
        answers = [verifier.extract(solution) for solution in sample.solutions]
        correct = [verifier.is_correct(answer, problem.ground_truth) for answer in answers]
        majority = majority_vote(answers)
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
            "extracted_answers": answers,
            "correct": correct,
            "success_rate": sum(correct) / self.k,
            # The unbiased estimator, 1 - C(wrong, k) / C(k, k), of as many samples as k.
            "pass_at_k": float(any(correct)),
            "majority_vote_answer": majority,
            "majority_vote_is_correct": verifier.is_correct(majority, problem.ground_truth),
            "input_tokens": sample.input_tokens,
            "output_tokens": sample.output_tokens,
            **self._costs(sample.arm, sample.input_tokens, sample.output_tokens),
            "truncated": sample.truncated,
        }

    def _costs(self, arm: str, input_tokens: int, output_tokens: Sequence[int]) -> dict[str, float]:
        prices = self.prices[arm]
        input_cost_usd = input_tokens * prices.input / 1e6
        output_cost_usd = sum(output_tokens) * prices.output / 1e6
        return {
            "input_cost_usd_once": input_cost_usd,
            "total_output_cost_usd": output_cost_usd,
            "total_cost_usd": input_cost_usd + output_cost_usd,
        }

    def priced(self, table: pa.Table) -> pa.Table:
        """Finished rollouts of these settings, at today's prices."""
        rows = zip(*(table[name].to_pylist() for name in ("arm", "input_tokens", "output_tokens")), strict=True)
        costs = pa.Table.from_pylist([self._costs(*row) for row in rows])
        for name in costs.column_names:
            table = table.set_column(table.column_names.index(name), name, costs[name])
        return table


def plan(args: Namespace) -> Run:
    """The run that the command's arguments ask for.

    Raises:
        UsageError, BenchmarkError, ConfigError: an argument or the configuration is wrong; names it.
    """
    settings = config.load(args.config)
    benchmark = load(args.benchmark)
    splits = pairs(args.split, "--split train=3000")
    if not all(n.isdigit() and int(n) > 0 for n in splits.values()):
        raise UsageError("--split wants a positive number of problems, such as --split train=3000")
    counts = {split: int(n) for split, n in splits.items()}
    problems = [p for split, n in counts.items() for p in benchmark.problems(split, n, args.seed)]
    arms = sampled_arms(settings, args)
    return Run(
        benchmark_name=args.benchmark,
        benchmark=benchmark,
        problems={(problem.split, problem.problem_id): problem for problem in problems},
        splits=counts,
        arms=arms,
        prices={name: settings.models[arm.model].usd_per_million_tokens for name, arm in arms.items()},
        runner=args.runner,
        k=args.k,
        seed=args.seed,
    )
