"""`pika bench scoring`: reading prompts, this engine beside the research code's way, plain Transformers and the bare
matrix products; then the engine under offered load, beside an ideal queue.

All ways read the same prompts in the same run, in the same dtype, with the same threads. CPU seconds are compared: of
the engine, those of its process and of the one that asks. On a GPU it is wall time.
"""

import asyncio
import json
import os
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import TimeElapsedColumn

from offline.bench import scoring_ways
from offline.bench.scoring_health import health_s
from offline.bench.scoring_load import Point, Running, offer, running, throughput
from offline.bench.scoring_model import Model, filled, make, prompts
from offline.bench.scoring_report import plot, table
from offline.bench.scoring_soak import soak
from offline.bench.scoring_ways import Cost
from offline.progress import bars
from probes.base import FloatArray, ProbeError

T = TypeVar("T")
EXAMPLES = """examples:
  pika bench scoring                     Qwen2-shaped, 107 M parameters: up to 10 minutes on 2 cores
  pika bench scoring --shape nano        the nano probe model: some 2 minutes
  pika bench scoring --device auto --dtype bfloat16
                                         the same on a GPU
  pika bench scoring --soak 1000000      memory of the engine's process over a million prompts of the nano probe model

The last line is JSON: ratio_vs_reference and ratio_vs_floor are CPU seconds (on a GPU: seconds) of the research code's
way, and of the bare matrix products, divided by the engine's; p99_vs_ideal_queue is at 70% of capacity,
goodput_at_120_percent the share of capacity that is answered in time when 120% is offered; shared_prefix_ratio is what
100-token questions cost after a shared system prompt of 300 tokens, against none; health_p99_ms is of /health at a
gateway whose engine is saturated.
"""
LOADS = (0.25, 0.5, 0.7, 0.9, 1.2)
JUDGED, OVERLOAD = 0.7, 1.2
BOUND = 10
"""Of the deadline at overload, and of what may wait, in mean service times of one prompt alone."""
SYSTEM_TOKENS, QUESTION_TOKENS = 300, 100


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    offline: int
    """Prompts that every way reads."""
    judged: int
    """Arrivals at the load whose p99 counts."""
    overload: int = 200
    others: int = 100
    repetitions: int = 2
    """Of all ways but the research code's, in turn; the cheapest counts."""

    def arrivals(self, load: float) -> int:
        return {JUDGED: self.judged, OVERLOAD: self.overload}.get(load, self.others)


PLANS = {"nano": Plan(400, 2000, repetitions=3)}
LARGE = Plan(48, 500)
ON_GPU = Plan(1000, 4000, overload=2000, others=2000, repetitions=3)
QUICK = Plan(offline=12, judged=30, overload=30, others=10, repetitions=1)


@dataclass
class Measured:
    tokens: int
    reference: Cost
    plain: Cost
    engine: Cost
    floor: Cost
    capacity: float
    """Prompts per second."""
    service_s: float
    """Mean of one prompt alone."""
    shared_prefix: float
    points: list[Point] = field(default_factory=list)
    health_s: FloatArray = field(default_factory=lambda: np.empty(0))
    """Of a gateway whose engine is saturated."""

    def summary(self) -> dict[str, float]:
        """The last line."""
        at = {point.share: point for point in self.points}
        return {
            "ratio_vs_reference": round(self.reference.seconds / self.engine.seconds, 3),
            "ratio_vs_floor": round(self.floor.seconds / self.engine.seconds, 3),
            "capacity_prompts_s": round(self.capacity, 2),
            "p99_vs_ideal_queue": round(at[JUDGED].p99_vs_ideal, 3),
            "goodput_at_120_percent": round(at[OVERLOAD].achieved / self.capacity, 3),
            "service_ms_batch1": round(1000 * self.service_s, 2),
            "shared_prefix_ratio": round(self.shared_prefix, 3),
            "health_p99_ms": round(1000 * float(np.percentile(self.health_s, 99)), 2),
        }


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    # Threads that spin while they wait would count as work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            model = make("nano" if args.soak else args.shape, args.layer, args.dtype, Path(scratch), args.device)
        except ProbeError as error:
            Console(stderr=True).print(f"pika bench scoring: {error}")
            return 2
        if args.soak:
            with _bar(f"{args.soak} prompts", args.soak) as advance:
                print(json.dumps(asyncio.run(soak(model, args.soak, args.seed, advance))))
            return 0
        plan = QUICK if args.quick else ON_GPU if model.device != "cpu" else PLANS.get(args.shape, LARGE)
        measured = asyncio.run(measure(model, plan, args.seed, Path(scratch)))
    Console().print(table(measured))
    plot(measured, args.plot)
    Console().print(f"plot: {args.plot}", highlight=False)
    print(json.dumps(measured.summary()))
    return 0


async def measure(model: Model, plan: Plan, seed: int, scratch: Path) -> Measured:
    """All of it. While one way is measured, the others wait."""
    sample = prompts(model, plan.offline, seed)
    lengths = [len(prompt) for prompt in sample]
    async with running(model) as at:
        with (
            _bar("four ways to read the same prompts", 2 + 3 * plan.repetitions) as advance,
            ProcessPoolExecutor(1, mp_context=get_context("spawn")) as others,
        ):

            async def other(way: Callable[..., T]) -> T:
                found = await asyncio.wrap_future(others.submit(way, model, sample))
                advance(1)
                return found

            reference = await other(scoring_ways.reference)
            plain, floor, engine = [], [], []
            for i in range(plan.repetitions):
                plain.append(await other(scoring_ways.plain))
                # Of other tokens each time: what was scored before is not computed again.
                engine.append(await throughput(at, filled(model, lengths, seed + i)))
                advance(1)
                floor.append(await other(scoring_ways.floor))
            alone = np.array(await other(scoring_ways.batch_1))
        measured = Measured(
            tokens=sum(lengths),
            reference=reference,
            plain=cheapest(plain),
            engine=cheapest(engine),
            floor=cheapest(floor),
            capacity=plan.offline / min(cost.wall_s for cost in engine),
            service_s=float(alone.mean()),
            shared_prefix=await _shared_prefix(at, model, max(4, plan.offline // 2), seed),
        )
        # What one prompt takes follows its length, smoothly.
        service = np.polynomial.Polynomial.fit(lengths, alone, deg=2)

        async def load(at: Running, share: float) -> None:
            arrived = prompts(model, plan.arrivals(share), seed=seed + round(100 * share))
            takes = np.array([service(len(prompt)) for prompt in arrived], dtype=np.float64)
            measured.points.append(await offer(at, arrived, share, measured.capacity, takes, seed))
            advance(1)

        with _bar("the engine under load", len(LOADS)) as advance:
            for share in LOADS[:-1]:
                await load(at, share)
            in_time = max(1, round(BOUND * measured.service_s * measured.capacity))
            async with running(model, in_time) as bounded:
                await load(bounded, LOADS[-1])
    with (
        _bar("/health of a gateway whose engine is saturated", 1) as advance,
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as others,
    ):
        measured.health_s = await health_s(model, others, scratch)
        advance(1)
    return measured


def cheapest(costs: Sequence[Cost]) -> Cost:
    return min(costs, key=lambda cost: cost.seconds)


async def _shared_prefix(at: Running, model: Model, n: int, seed: int) -> float:
    """What questions cost after a system prompt that all share, against questions alone."""
    (system,) = filled(model, [SYSTEM_TOKENS], seed)
    questions = filled(model, [QUESTION_TOKENS] * (2 * n + 2), seed)
    without = await throughput(at, questions[:n])
    await throughput(at, [system + question for question in questions[-2:]])  # tells that it is shared
    shared = await throughput(at, [system + question for question in questions[n : 2 * n]])
    return shared.seconds / without.seconds


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika bench scoring",
        description="Reading prompts: this engine beside the research code's way, and beside bare matrix products.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--shape", default="default", metavar="SHAPE", help="nano, default, or a checkpoint's folder")
    parser.add_argument(
        "--layer", type=int, help="that the probe reads (half the depth; nano: the deepest of its probes)"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the probe model")
    parser.add_argument(
        "--device", default="cpu", help="cpu (default), cuda:N, or auto: the first GPU where there is one"
    )
    parser.add_argument("--plot", type=Path, default=Path("scoring.png"), help="where the picture goes (scoring.png)")
    parser.add_argument("--quick", action="store_true", help="a few prompts: shows that it runs, measures little")
    parser.add_argument("--soak", type=int, metavar="N", help="score N prompts of the nano probe model; memory alone")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    return parser


@contextmanager
def _bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    with bars(TimeElapsedColumn()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)
