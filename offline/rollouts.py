"""`pika rollouts`: sample k answers of each arm to each problem, verify them, write one parquet file."""

import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

from offline import rollout_problems
from offline.benchmarks.base import BenchmarkError
from offline.options import positive, seconds
from offline.progress import Rate, bars
from offline.provenance import provenance
from offline.rollout_arms import UsageError
from offline.rollout_plan import Run, plan
from offline.rollout_preview import preview
from offline.rollout_report import report
from offline.rollout_store import Journal, StoreError, journal_path, read, to_table, write
from offline.samplers import Job, Limits, Record, Sample, SamplingError
from offline.verifiers.base import VerifierError
from server.config import ConfigError, load

EXAMPLES = """examples:
  pika rollouts offline/nano_pool/pool.yaml --benchmark running_total \\
      --split train=3000 --split validation=2000 --split test=1500 --k 8 --out rollouts.parquet

  pika rollouts pool.yaml --benchmark running_total --split test=200 --arms small,large \\
      --runner endpoint --url small=http://127.0.0.1:8101/v1 --url large=http://127.0.0.1:8102/v1 --out test.parquet

  pika rollouts pool.yaml --benchmark gsm8k --split train=all --split test=500 --k 8 --out gsm8k.parquet --dry-run
  pika rollouts pool.yaml --benchmark polymath --dataset-config sw --split test=all --out swahili.parquet \\
      --system 'small=You are a careful accountant.' --suffix '*= Answer in \\boxed{}.'

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
        if args.dry_run:
            preview(run, load(args.config))
            return 0
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
    report(table, out)
    return 0


def _sample(run: Run, args: Namespace, argv: list[str], out: Path) -> pa.Table:
    started = time.monotonic()
    with Journal(out, run.settings) as journal:
        jobs = run.jobs(journal.samples)
        total = len(run.arms) * len(run.problems)
        with _progress() as progress:
            task = progress.add_task("", total=total, completed=total - len(jobs))

            def record(sample: Sample) -> None:
                journal.add(sample)
                progress.update(task, advance=1, description=sample.arm)

            if jobs:
                progress.update(task, description="starting")
                _sampler(args)(jobs, run.k, record)
        with _progress() as progress:
            task = progress.add_task("verifying", total=total)
            rows = run.rows(journal.samples, lambda done: progress.update(task, advance=done))
        origin = provenance("rollouts", argv, run.seed, [Path(args.config)]) | {
            "settings": run.settings,
            "seconds": round(time.monotonic() - started, 1),
            "rows_resumed": total - len(jobs),
        }
        table = to_table(rows, origin)
        write(out, table)
        journal.remove()
    return table


def _sampler(args: Namespace) -> Callable[[Sequence[Job], int, Record], None]:
    """The runner's; imported here, since each brings libraries that take their time."""
    limits = Limits(args.concurrency, args.timeout, args.patience)
    if args.runner == "vllm":
        from offline import vllm_sampler

        return partial(vllm_sampler.sample, replicas=args.replicas)
    if args.runner == "ray":
        from offline import ray_sampler

        return partial(ray_sampler.sample, limits=limits, replicas=args.replicas)
    from offline import endpoint_sampler

    return partial(endpoint_sampler.sample, limits=limits)


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


def _progress() -> Progress:
    return bars(MofNCompleteColumn(), Rate("{:.1f} problems/s"), "left", TimeRemainingColumn())


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
    parser.add_argument("--k", type=positive, default=8, help="answers per problem (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of problems and sampling (default: 0)")
    parser.add_argument("--arms", metavar="A,B", help="default: all of CONFIG")
    parser.add_argument("--temperature", type=float, metavar="T", help="default: the arm's")
    parser.add_argument("--max-tokens", type=positive, metavar="N", help="default: the arm's")
    parser.add_argument(
        "--runner",
        choices=("vllm", "endpoint", "ray"),
        default="vllm",
        help="vllm: loads each model here; endpoint: asks OpenAI-compatible servers; ray: the same from a Ray cluster, "
        "which also loads models that have no server (default: vllm)",
    )
    parser.add_argument(
        "--replicas",
        type=positive,
        default=1,
        metavar="N",
        help="vllm: processes per model, the GPUs or cores split among them; ray: actors (default: 1)",
    )
    parser.add_argument(
        "--system",
        action="append",
        default=[],
        metavar="ARM=TEXT",
        help="an arm's system prompt; '*=TEXT' for every other arm; may be repeated",
    )
    parser.add_argument(
        "--suffix",
        action="append",
        default=[],
        metavar="ARM=TEXT",
        help="appended to an arm's problems as it stands; '*=TEXT' for every other arm; may be repeated",
    )
    endpoints = parser.add_argument_group("endpoints")
    endpoints.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="ARM=URL[,URL]",
        help="an arm's servers, ending in /v1; default: CONFIG's",
    )
    endpoints.add_argument(
        "--concurrency",
        type=positive,
        default=Limits.concurrency,
        metavar="N",
        help="requests at a time to the endpoints of each model (default: %(default)s)",
    )
    endpoints.add_argument(
        "--timeout",
        type=seconds,
        default=Limits.timeout_s,
        metavar="SECONDS",
        help="for one request's answers (default: %(default)g)",
    )
    endpoints.add_argument(
        "--patience",
        type=seconds,
        default=Limits.patience_s,
        metavar="SECONDS",
        help="how long all endpoints of a model may be away in mid-run before the run stops (default: %(default)g)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be sampled, its cost, and a prompt; sample nothing"
    )
    return parser
