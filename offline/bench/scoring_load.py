"""The engine under offered load: arrivals by chance, beside an ideal queue that serves them one by one."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from offline.bench import servers
from offline.bench.scoring_model import Model
from offline.bench.scoring_ways import Cost
from probes.base import FloatArray
from probes.engine.base import EngineOptions, EngineUnavailableError, Prompt
from probes.engine.process import ProcessEngine

NEVER_S = 3600.0
Prompts = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Point:
    """What was measured at one offered load."""

    share: float
    """Offered load as a share of capacity."""
    capacity: float
    """Prompts per second of this length, right before."""
    achieved: float
    """Prompts answered per second."""
    latency_s: FloatArray
    """Of the prompts that were answered."""
    refused_s: FloatArray
    """How long it took to say no to the others."""
    batch_prompts: float
    """Mean prompts of a micro-batch."""
    arrivals_s: FloatArray
    cpu_s: float
    wall_s: float
    ideal_s: FloatArray = field(default_factory=lambda: np.empty(0))
    """Latencies of the ideal queue on the same arrivals."""

    @property
    def goodput(self) -> float:
        """Answered in time, as a share of capacity."""
        return self.achieved / self.capacity

    @property
    def p99_vs_ideal(self) -> float:
        return float(np.percentile(self.latency_s, 99) / np.percentile(self.ideal_s, 99))


@dataclass(frozen=True)
class Running:
    """The engine's process, warm."""

    engine: ProcessEngine
    batches: list[int]
    """Prompts of every micro-batch so far."""
    on_gpu: bool
    bound: int | None
    """Of its queue, in prompts; None: none that is ever reached."""


@asynccontextmanager
async def running(model: Model, bound: int | None = None) -> AsyncIterator[Running]:
    """An engine in a process of its own, for as long as it is used."""
    batches: list[int] = []
    engine = ProcessEngine(
        [model.artifact],
        EngineOptions(device=model.device, queue_prompts=bound or 10**6, queue_tokens=10**9),
        on_report=lambda report: batches.extend(batch.prompts for batch in report.batches),
    )
    await engine.start()
    try:
        for length in (50, 100, 200, 400):
            await engine.score([Prompt((tuple(range(3, 3 + length)),))], asyncio.get_running_loop().time() + NEVER_S)
        yield Running(engine, batches, model.device != "cpu", bound)
    finally:
        await engine.close()


async def throughput(at: Running, prompts: Prompts) -> Cost:
    """All prompts at once, through the process and its messages; CPU seconds of both sides."""
    cpu, wall = cpu_s(at.engine), time.perf_counter()
    await at.engine.score([Prompt((prompt,)) for prompt in prompts], asyncio.get_running_loop().time() + NEVER_S)
    return Cost(cpu_s(at.engine) - cpu, time.perf_counter() - wall, at.on_gpu)


async def offer(at: Running, prompts: Prompts, share: float, capacity: float, seed: int) -> Point:
    """Prompts one by one, at times that do not heed the answers (Poisson).

    Where the queue is bounded, prompts have the time that a full one takes; else they have all.

    Args:
        capacity: prompts per second.
    """
    arrivals = np.cumsum(np.random.default_rng(seed).exponential(1 / (share * capacity), size=len(prompts)))
    patience_s = NEVER_S if at.bound is None else at.bound / capacity
    answered: list[float] = []
    refused: list[float] = []
    at.batches.clear()
    loop = asyncio.get_running_loop()
    cpu, began = cpu_s(at.engine), loop.time()

    async def one(prompt: tuple[int, ...], arrival: float) -> None:
        await asyncio.sleep(began + arrival - loop.time())
        try:
            await at.engine.score([Prompt((prompt,))], began + arrival + patience_s)
        except EngineUnavailableError:
            refused.append(loop.time() - began - arrival)
        else:
            answered.append(loop.time() - began - arrival)

    await asyncio.gather(*(one(*each) for each in zip(prompts, arrivals.tolist(), strict=True)))
    seconds, used = loop.time() - began, cpu_s(at.engine) - cpu
    return Point(
        share,
        capacity,
        len(answered) / seconds,
        np.array(answered),
        np.array(refused),
        float(np.mean(at.batches or [1])),
        arrivals,
        used,
        seconds,
    )


def ideal_queue(arrivals: FloatArray, service_s: FloatArray) -> FloatArray:
    """Latencies of one server that takes prompts as they come and loses no time between them, (n,).

    Args:
        service_s: what each prompt takes alone, (n,).
    """
    latencies, free = [], 0.0
    for arrival, service in zip(arrivals, service_s, strict=True):
        free = max(free, arrival) + service
        latencies.append(free - arrival)
    return np.array(latencies)


def cpu_s(engine: ProcessEngine) -> float:
    """CPU seconds of the engine's process and of this one so far."""
    return servers.cpu_s(_pid(engine)) + time.process_time()


def resident_mb(engine: ProcessEngine) -> float:
    """Memory of the engine's process."""
    return servers.resident_mb(_pid(engine))


def _pid(engine: ProcessEngine) -> int:
    assert engine.pid is not None
    return engine.pid
