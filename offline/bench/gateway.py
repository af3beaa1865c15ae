"""`pika bench gateway`: what the gateway costs per request, beside nginx and LiteLLM's proxy where they are installed.

All stand before the same upstream, which answers at once, on the same cores, and are asked in turn. CPU time is that of
the system's own processes, from /proc: neither the upstream's, nor that of the load, nor the engine's (`pika bench
scoring` measures it).
"""

import json
import shutil
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import TimeElapsedColumn

from offline.bench import gateway_load, gateway_rivals
from offline.bench.gateway_load import Kind, Target
from offline.bench.gateway_report import KINDS, Measured, Point, summary, tables
from offline.bench.gateway_rivals import OURS, System
from offline.bench.servers import Server, ServerError, one_process
from offline.progress import bars

T = TypeVar("T")
SETTLE_S = 0.3
"""By then a system has written what it gathers, which counts too."""
AT_RATES: tuple[Kind, ...] = ("request", "stream")
"""What the open loop asks for."""
EXAMPLES = """examples:
  pika bench gateway                                  some 7 minutes; nginx too, where it is installed
  pika bench gateway --litellm ~/litellm/bin/litellm  and LiteLLM's proxy, from an environment of its own
  pika bench gateway --quick                          shows that it runs, measures little

Of "pika, ledger", "pika, key" and "pika, budget" each adds to the one before: every decision is recorded; the key
has limits on requests and tokens; what a request may cost is reserved, durably, before it is sent.

The last line is JSON: cpu_us_per_request and cpu_us_per_stream are microseconds of CPU, with 32 clients that ask again
as soon as they are answered, policy min_cost; ratio_vs_nginx and ratio_vs_litellm are the others' divided by ours.
p99_added_ms_at_500 is p99 at 500 requests/s less that of the upstream asked directly. streams_open_memory_mb is by how
much the gateway grew with so many streams open that all had their first chunk.
"""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int
    """Of the closed loop: many short ones, for a neighbour on the machine spoils whole seconds."""
    round_s: float
    seconds: float
    """Of the open loop."""
    warm_up_s: float
    rates: tuple[int, ...]
    """Requests per second of the open loop; left out where a system cannot do as many."""
    streams: int
    """Open at once."""
    prompts: int
    """Distinct ones."""

    @property
    def loads(self) -> int:
        """On one system, if it can do all of them."""
        return len(KINDS) * (1 + self.rounds) + len(AT_RATES) * len(self.rates)


FULL = Plan(rounds=7, round_s=1, seconds=3, warm_up_s=1, rates=(100, 500, 1000), streams=2000, prompts=20_000)
QUICK = Plan(rounds=1, round_s=0.3, seconds=0.3, warm_up_s=0.1, rates=(50,), streams=40, prompts=500)


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    litellm = shutil.which(args.litellm)
    if litellm is None and args.litellm != "litellm":
        Console(stderr=True).print(f"pika bench gateway: no program at {args.litellm}")
        return 2
    plan = QUICK if args.quick else FULL
    try:
        found = measure(plan, gateway_rivals.systems(litellm), args.seed)
    except ServerError as error:
        Console(stderr=True).print(f"pika bench gateway: {error}", markup=False)
        return 1
    Console().print(tables(found, plan.rates))
    print(json.dumps(summary(found)))
    return 0


def measure(plan: Plan, systems: list[System], seed: int) -> list[Measured]:
    """All systems run at once, and are asked in turn: a machine that slows down for a while does so for each of them.

    Raises:
        ServerError: the gateway does not start.
    """
    with (
        tempfile.TemporaryDirectory() as scratch,
        gateway_rivals.upstream(0, Path(scratch)) as upstream,
        one_process() as clients,
        bars(TimeElapsedColumn()) as progress,
        ExitStack() as started,
    ):
        benches = []
        for system in systems:
            folder = Path(scratch, system.name)
            folder.mkdir()
            try:
                server = started.enter_context(system.start(upstream.port, folder))
            except ServerError as error:
                if not system.rival:
                    raise
                progress.console.print(f"left out: {error}", markup=False)
                continue
            steps = progress.add_task(system.name, total=plan.loads)
            benches.append(Bench(plan, system, server, clients, partial(progress.update, steps)))
        for kind in KINDS:
            for bench in benches:
                bench.load(gateway_load.closed, bench.target(kind), plan.warm_up_s)
            for _ in range(plan.rounds):
                for bench in benches:
                    bench.saturate(kind)
        for bench in benches:
            for kind, rate in product(AT_RATES, plan.rates):
                bench.offer(kind, rate, seed)
            if bench.system.name == OURS:
                asked = bench.target("stream"), upstream.port, bench.server, plan.streams
                bench.measured.held = bench.load(gateway_load.held, *asked)
            bench.end()
    return [bench.measured for bench in benches]


class Bench:
    """A started system, and the process that asks it."""

    def __init__(
        self, plan: Plan, system: System, server: Server, clients: ProcessPoolExecutor, progress: Callable[..., None]
    ) -> None:
        self.system = system
        self.server = server
        self.measured = Measured(system.name)
        self._plan = plan
        self._clients = clients
        self._progress = progress

    def target(self, kind: Kind) -> Target:
        return Target(self.server.port, kind, self._plan.prompts, self.system.verbatim)

    def saturate(self, kind: Kind) -> None:
        """One round of the closed loop. Neighbours on a machine can only add: the cheapest counts, with all errors."""
        one = self._point(gateway_load.closed, self.target(kind), self._plan.round_s)
        before = self.measured.saturated.get(kind)
        cheapest = one if before is None or one.cpu_us < before.cpu_us else before
        errors = one.outcome.errors + (0 if before is None else before.outcome.errors)
        self.measured.saturated[kind] = replace(cheapest, outcome=replace(cheapest.outcome, errors=errors))

    def offer(self, kind: Kind, rate: int, seed: int) -> None:
        """The open loop, where the system can do as many."""
        if rate < self.measured.saturated[kind].outcome.per_s:
            point = self._point(gateway_load.opened, self.target(kind), rate, self._plan.seconds, seed)
            self.measured.at[kind, rate] = point

    def load(self, load: Callable[..., T], *args: object) -> T:
        found = self._clients.submit(load, *args).result()
        self._progress(advance=1)
        return found

    def end(self) -> None:
        self._progress(completed=self._plan.loads)

    def _point(self, load: Callable[..., gateway_load.Outcome], *args: object) -> Point:
        before = self.server.cpu_s()
        outcome = self.load(load, *args)
        time.sleep(SETTLE_S)
        return Point(outcome, self.server.cpu_s() - before)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika bench gateway",
        description="What the gateway costs per request, beside nginx and LiteLLM's proxy where they are installed.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--litellm", default="litellm", metavar="PATH", help="the program of LiteLLM's proxy (litellm, where installed)"
    )
    parser.add_argument("--quick", action="store_true", help="little load: shows that it runs, measures little")
    parser.add_argument("--seed", type=int, default=0, help="of arrivals")
    return parser
