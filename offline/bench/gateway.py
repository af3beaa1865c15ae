"""`pika bench gateway`: what the gateway costs per request, beside nginx and LiteLLM's proxy where they are installed.

All stand in turn before the same upstream, which answers at once, on the same cores and under the same load. CPU time
is that of the system's own processes, from /proc: neither the upstream's, nor that of the load, nor the engine's
(`pika bench scoring` measures it).
"""

import json
import shutil
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import TimeElapsedColumn

from offline.bench import gateway_load, gateway_rivals
from offline.bench.gateway_load import Target
from offline.bench.gateway_report import KINDS, Measured, Point, summary, tables
from offline.bench.gateway_rivals import OURS, System
from offline.bench.servers import Server, ServerError, one_process
from offline.progress import bars

T = TypeVar("T")
ROUNDS = 2
"""Of the closed loop."""
EXAMPLES = """examples:
  pika bench gateway                                  up to 7 minutes; nginx too, where it is installed
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

    seconds: float
    """Of every load."""
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
        return len(KINDS) * (1 + ROUNDS) + 2 * len(self.rates)


FULL = Plan(seconds=3, warm_up_s=1, rates=(100, 500, 1000), streams=2000, prompts=20_000)
QUICK = Plan(seconds=0.3, warm_up_s=0.1, rates=(50,), streams=40, prompts=500)


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
    """Every system in turn.

    Raises:
        ServerError: the gateway does not start.
    """
    found = []
    with (
        tempfile.TemporaryDirectory() as scratch,
        gateway_rivals.upstream(0, Path(scratch)) as upstream,
        one_process() as clients,
        bars(TimeElapsedColumn()) as progress,
    ):
        for system in systems:
            steps = progress.add_task(system.name, total=plan.loads)
            folder = Path(scratch, system.name)
            folder.mkdir()
            try:
                with system.start(upstream.port, folder) as server:
                    bench = Bench(plan, server, clients, partial(progress.advance, steps))
                    found.append(bench.measured(system, seed))
                    if system.name == OURS:
                        target = Target(server.port, "stream", plan.prompts)
                        found[-1].held = bench.load(gateway_load.held, target, upstream.port, server, plan.streams)
            except ServerError as error:
                if not system.rival:
                    raise
                progress.console.print(f"left out: {error}", markup=False)
            progress.update(steps, completed=plan.loads)
    return found


@dataclass(frozen=True)
class Bench:
    """A started system, and the process that asks it."""

    plan: Plan
    server: Server
    clients: ProcessPoolExecutor
    advance: Callable[[], None]

    def measured(self, system: System, seed: int) -> Measured:
        measured = Measured(system.name)
        for kind in KINDS:
            target = Target(self.server.port, kind, self.plan.prompts, system.verbatim)
            self.load(gateway_load.closed, target, self.plan.warm_up_s)
            rounds = [self._point(gateway_load.closed, target, self.plan.seconds) for _ in range(ROUNDS)]
            # Neighbours on the machine can only add: the cheapest counts, with all errors.
            errors = sum(one.outcome.errors for one in rounds)
            cheapest = min(rounds, key=lambda one: one.cpu_us)
            saturated = replace(cheapest, outcome=replace(cheapest.outcome, errors=errors))
            measured.saturated[kind] = saturated
            for rate in self.plan.rates if kind != "one-by-one" else ():
                if rate < saturated.outcome.per_s:
                    point = self._point(gateway_load.opened, target, rate, self.plan.seconds, seed)
                    measured.at[kind, rate] = point
        return measured

    def _point(self, load: Callable[..., gateway_load.Outcome], *args: object) -> Point:
        before = self.server.cpu_s()
        outcome = self.load(load, *args)
        return Point(outcome, self.server.cpu_s() - before)

    def load(self, load: Callable[..., T], *args: object) -> T:
        found = self.clients.submit(load, *args).result()
        self.advance()
        return found


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
