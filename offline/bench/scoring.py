"""`pika bench scoring`: reading prompts, this engine beside the research code's way, plain Transformers and the bare
matrix products; then the engine under offered load, beside an ideal queue.

All ways read the same prompts in the same run, in the same dtype, with the same threads. CPU seconds are compared: of
the engine, those of its process and of the one that asks. On a GPU it is wall time.
"""

import asyncio
import gc
import json
import os
import statistics
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from rich.console import Console
from rich.progress import TimeElapsedColumn

from offline.bench import scoring_ways
from offline.bench.scoring_health import health_s
from offline.bench.scoring_load import Point, Running, ideal_queue, offer, running, throughput
from offline.bench.scoring_model import Model, filled, make, prompts
from offline.bench.scoring_report import plot, table
from offline.bench.scoring_soak import soak
from offline.bench.scoring_ways import Cost
from offline.bench.servers import one_process
from offline.progress import bars
from probes.base import FloatArray, ProbeError

T = TypeVar("T")
EXAMPLES = """examples:
  pika bench scoring                     Qwen2-shaped, 107 M parameters: 9 minutes on 2 cores
  pika bench scoring --shape nano        the nano probe model: 4 minutes
  pika bench scoring --device auto --dtype bfloat16
                                         the same on a GPU
  pika bench scoring --soak 1000000      memory of the engine's process over a million prompts of the nano probe model

The last line is JSON: ratio_vs_reference, ratio_vs_floor and ratio_vs_batched are CPU seconds (on a GPU: seconds) of
the research code's way, of the bare matrix products, and of Transformers in batches of prompts of nearly one length,
divided by the engine's; p99_vs_ideal_queue is at 70% of capacity, and the ideal queue takes for each prompt what one of
its length takes alone; goodput_at_120_percent is the share of capacity that is answered in time when 120% is offered,
both the middle of several rounds; shared_prefix_ratio is what 100-token questions cost after a shared system prompt of
300 tokens, against none; health_p99_ms is of /health at a gateway whose engine is saturated.
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
    rounds: int = 3
    """Of the load whose p99 counts, and of overload; the middle ones do."""
    health: int = 500
    """Times that /health is asked for."""

    def arrivals(self, load: float) -> int:
        return {JUDGED: self.judged, OVERLOAD: self.overload}.get(load, self.others)


PLANS = {"nano": Plan(400, 2000, overload=1000, repetitions=6, rounds=5)}
LARGE = Plan(48, 500, repetitions=4)
ON_GPU = Plan(1000, 4000, overload=2000, others=2000, repetitions=3)
QUICK = Plan(offline=12, judged=30, overload=30, others=10, repetitions=1, rounds=1, health=50)


@dataclass
class Measured:
    tokens: int
    reference: Cost
    plain: Cost
    batched: Cost
    engine: Cost
    floor: Cost
    capacity: float
    """Prompts per second, before any load."""
    service_s: float
    """Mean of one prompt alone, before any load."""
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
            "ratio_vs_batched": round(self.batched.seconds / self.engine.seconds, 3),
            "capacity_prompts_s": round(self.capacity, 2),
            "p99_vs_ideal_queue": round(at[JUDGED].p99_vs_ideal, 3),
            "goodput_at_120_percent": round(at[OVERLOAD].goodput, 3),
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
    gc.collect()
    gc.freeze()  # a collection here would hold up those who ask
    async with running(model) as at:
        with one_process() as others:
            bench = Bench(model, plan, seed, others)
            measured = await bench.ways(at)
            with _bar("the engine under load", len(LOADS) - 2 + 2 * plan.rounds) as advance:
                for share in LOADS[:-1]:
                    rounds = plan.rounds if share == JUDGED else 1
                    points = [await bench.load(at, at, share, advance, i) for i in range(rounds)]
                    measured.points.append(middle(points, lambda point: point.p99_vs_ideal))
                in_time = max(1, round(BOUND * measured.service_s * measured.capacity))
                async with running(model, in_time) as bounded:
                    points = [await bench.load(bounded, at, OVERLOAD, advance, i) for i in range(plan.rounds)]
                    measured.points.append(middle(points, lambda point: -point.goodput))
    with (
        _bar("/health of a gateway whose engine is saturated", 1) as advance,
        one_process() as others,
    ):
        measured.health_s = await health_s(model, plan.health, others, scratch)
        advance(1)
    return measured


class Bench:
    """What is measured with one model, on one sample of prompts.

    Args:
        others: where the other ways run.
    """

    def __init__(self, model: Model, plan: Plan, seed: int, others: ProcessPoolExecutor) -> None:
        self._model = model
        self._plan = plan
        self._seed = seed
        self._others = others
        self._sample = prompts(model, plan.offline, seed)
        self._lengths = [len(prompt) for prompt in self._sample]
        self._alone: list[FloatArray] = []
        """Seconds of each prompt of the sample alone, before any load and after each."""

    async def ways(self, at: Running) -> Measured:
        """Five ways to read the sample; and what depends on no load."""
        plain, batched, floor, engine = [], [], [], []
        with _bar("five ways to read the same prompts", 1 + 4 * self._plan.repetitions) as advance:
            reference = await self._other(scoring_ways.reference)
            advance(1)
            for i in range(self._plan.repetitions):
                plain.append(await self._other(scoring_ways.plain))
                advance(1)
                batched.append(await self._other(scoring_ways.batched))
                advance(1)
                # Of other tokens each time: what was scored before is not computed again.
                engine.append(await throughput(at, filled(self._model, self._lengths, self._seed + i)))
                advance(1)
                floor.append(await self._other(scoring_ways.floor))
                advance(1)
        await self._read_alone()
        return Measured(
            tokens=sum(self._lengths),
            reference=reference,
            plain=cheapest(plain),
            batched=cheapest(batched),
            engine=cheapest(engine),
            floor=cheapest(floor),
            capacity=self._plan.offline / statistics.median(cost.wall_s for cost in engine),
            service_s=float(self._alone[0].mean()),
            shared_prefix=await self._shared_prefix(at),
        )

    async def load(
        self, under: Running, at: Running, share: float, advance: Callable[[float], None], turn: int = 0
    ) -> Point:
        """The engine `under` a share of what `at` can do right before: a machine is not always equally fast. The ideal
        queue has what was measured before and after; what a prompt takes follows its length, smoothly.
        """
        some = filled(self._model, self._lengths[: self._plan.offline // 2], self._seed + len(self._alone))
        tokens_s = sum(map(len, some)) / (await throughput(at, some)).wall_s
        arrived = prompts(self._model, self._plan.arrivals(share), self._seed + turn + round(100 * share))
        capacity = tokens_s * len(arrived) / sum(map(len, arrived))
        point = await offer(under, arrived, share, capacity, self._seed + turn)
        await self._read_alone()
        service = np.polynomial.Polynomial.fit(2 * self._lengths, np.concatenate(self._alone[-2:]), deg=2)
        takes = np.array([service(len(prompt)) for prompt in arrived], dtype=np.float64)
        advance(1)
        return replace(point, ideal_s=ideal_queue(point.arrivals_s, takes))

    async def _shared_prefix(self, at: Running) -> float:
        """What questions cost after a system prompt that all share, against questions alone."""
        n = self._plan.offline
        without, shared = [], []
        for i in range(self._plan.repetitions):
            (system,) = filled(self._model, [SYSTEM_TOKENS], self._seed + i)
            questions = filled(self._model, [QUESTION_TOKENS] * (2 * n + 2), self._seed + i)
            without.append(await throughput(at, questions[:n]))
            await throughput(at, [system + question for question in questions[-2:]])  # tells that it is shared
            shared.append(await throughput(at, [system + question for question in questions[n : 2 * n]]))
        return cheapest(shared).seconds / cheapest(without).seconds

    async def _read_alone(self) -> None:
        self._alone.append(np.array(await self._other(scoring_ways.batch_1)))

    async def _other(self, way: Callable[[Model, scoring_ways.Prompts], T]) -> T:
        return await asyncio.wrap_future(self._others.submit(way, self._model, self._sample))


def middle(rounds: Sequence[Point], by: Callable[[Point], float]) -> Point:
    """That with the median; of an even number, with the greater one of the two."""
    return sorted(rounds, key=by)[len(rounds) // 2]


def cheapest(costs: Sequence[Cost]) -> Cost:
    return min(costs, key=lambda cost: cost.seconds)


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
