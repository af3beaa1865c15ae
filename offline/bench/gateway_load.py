"""Load for `pika bench gateway`, made in a process of its own: closed loop, open loop, streams held open.

Every answer is looked at: one that is not the upstream's, byte for byte, is an error.
"""

import asyncio
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from time import perf_counter as clock
from typing import Literal

import numpy as np
import uvloop

from offline.bench.gateway_client import Connection, Connections, Reply, chat, connect, get
from offline.bench.gateway_upstream import DONE, MARK, STREAM, WHOLE
from offline.bench.servers import Server, more_files
from offline.benchmarks.running_total import RunningTotal

Kind = Literal["request", "stream", "one-by-one"]
FIELDS: dict[Kind, dict[str, object]] = {
    "request": {},
    "stream": {"stream": True},
    "one-by-one": {"stream": True, "user": "one-by-one"},
}
CONCURRENCY = 32
LEFT_S = 60.0
"""What has no answer so long after the last request is an error."""
OPENING = 64
"""Streams that are opened at a time."""


@dataclass(frozen=True)
class Target:
    """Who is asked for what."""

    port: int
    kind: Kind
    prompts: int
    """Distinct ones, asked in turn; more than any cache of scores keeps."""
    verbatim: bool = True
    """Whether answers must be the upstream's bytes; else they need only mean the same."""

    def is_right(self, reply: Reply) -> bool:
        if not (reply.whole and reply.status == 200):
            return False
        if self.verbatim:
            return reply.body == (WHOLE if self.kind == "request" else STREAM)
        return MARK.encode() in reply.body and (self.kind == "request" or reply.body.rstrip().endswith(DONE.rstrip()))


@dataclass(frozen=True)
class Outcome:
    """What load found."""

    answers: int
    """Right ones."""
    errors: int
    seconds: float
    p50_ms: float
    p99_ms: float

    @property
    def per_s(self) -> float:
        return self.answers / self.seconds


@dataclass(frozen=True)
class Held:
    """Streams that were open at once."""

    begun: int
    """How many had their first chunk while the upstream held the others back."""
    errors: int
    memory_mb: float
    """By how much they had the server grow."""


def closed(target: Target, seconds: float) -> Outcome:
    """Each of `CONCURRENCY` clients asks again as soon as it is answered."""
    return uvloop.run(_closed(target, seconds))


def opened(target: Target, rate: float, seconds: float, seed: int) -> Outcome:
    """Requests at times that do not heed the answers (Poisson), `rate` a second."""
    return uvloop.run(_opened(target, rate, seconds, seed))


def held(target: Target, upstream: int, server: Server, streams: int) -> Held:
    """Streams of one chunk each, all open at once, then released.

    Args:
        upstream: its port.
    """
    more_files()
    return uvloop.run(_held(target, upstream, server, streams))


class Load:
    """Asks, looks at the answers and writes down how long they took."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.latencies_s: list[float] = []
        self.errors = 0
        self._requests = requests(target.kind, target.prompts)
        self._began = clock()

    async def ask(self, connection: Connection, began: float) -> None:
        reply = await connection.ask(next(self._requests))
        if self.target.is_right(reply):
            self.latencies_s.append(clock() - began)
        else:
            self.errors += 1

    def outcome(self, unanswered: int) -> Outcome:
        seconds = clock() - self._began
        p50, p99 = 1000 * np.percentile(self.latencies_s or [np.nan], (50, 99))
        return Outcome(len(self.latencies_s), self.errors + unanswered, seconds, float(p50), float(p99))


async def _closed(target: Target, seconds: float) -> Outcome:
    load = Load(target)
    connections = Connections(target.port)
    until = clock() + seconds

    async def client() -> None:
        while (now := clock()) < until:
            async with connections.one() as connection:
                await load.ask(connection, now)

    unanswered = await _finished([asyncio.create_task(client()) for _ in range(CONCURRENCY)], seconds + LEFT_S)
    connections.close()
    return load.outcome(unanswered)


async def _opened(target: Target, rate: float, seconds: float, seed: int) -> Outcome:
    load = Load(target)
    connections = Connections(target.port)

    async def client() -> None:
        began = clock()
        async with connections.one() as connection:
            await load.ask(connection, began)

    tasks = []
    arrivals = clock() + np.cumsum(np.random.default_rng(seed).exponential(1 / rate, size=int(rate * seconds)))
    for arrival in arrivals.tolist():
        # The loop's timers count milliseconds: who is due within one is sent with those before.
        if (wait := arrival - clock()) > 0.001:
            await asyncio.sleep(wait)
        tasks.append(asyncio.create_task(client()))
    unanswered = await _finished(tasks, LEFT_S)
    connections.close()
    return load.outcome(unanswered)


async def _finished(tasks: list[asyncio.Task[None]], within_s: float) -> int:
    """Wait for tasks; how many did not end well by then."""
    done, left = await asyncio.wait(tasks, timeout=within_s)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    return len(left) + sum(task.exception() is not None for task in done)


async def _held(target: Target, upstream: int, server: Server, streams: int) -> Held:
    before = server.resident_mb()
    connections: list[Connection] = []
    replies: list[asyncio.Task[Reply]] = []
    prompts = islice(cycle(problems(target.prompts)), streams)
    try:
        while True:
            some = list(islice(prompts, OPENING))
            if not some:
                break
            new = await asyncio.gather(*(connect(target.port) for _ in some))
            connections += new
            for connection, prompt in zip(new, some, strict=True):
                replies.append(asyncio.create_task(connection.ask(chat(prompt, stream=True, user="hold"))))
            await asyncio.sleep(0)  # the requests are on their way, nothing says that they have begun
            await asyncio.wait([asyncio.create_task(connection.begun.wait()) for connection in new], timeout=LEFT_S)
        begun = sum(connection.begun.is_set() and connection.open for connection in connections)
        memory_mb = server.resident_mb() - before
        released = await connect(upstream)
        await released.ask(get("/release"))
        released.close()
        done, _ = await asyncio.wait(replies, timeout=LEFT_S)
        right = sum(task.exception() is None and target.is_right(task.result()) for task in done)
        return Held(begun, streams - right, memory_mb)
    finally:
        for task in replies:
            task.cancel()
        for connection in connections:
            connection.close()


@functools.cache
def problems(n: int) -> list[str]:
    return [problem.problem for problem in RunningTotal().problems("train", n, seed=0)]


@functools.cache
def requests(kind: Kind, n: int) -> Iterator[bytes]:
    """Without end; goes on where the last load stopped."""
    return cycle([chat(problem, **FIELDS[kind]) for problem in problems(n)])
