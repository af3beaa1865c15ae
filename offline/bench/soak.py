"""`pika bench soak`: many clients at once, upstreams that fail at times; nothing may be lost, mixed up or left over."""

import json
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import httpx
import yaml
from rich import box
from rich.console import Console
from rich.progress import TimeElapsedColumn
from rich.table import Table

from offline.bench import soak_clients
from offline.bench.gateway_rivals import pika
from offline.bench.servers import HOST, Server, ServerError, free_port, one_process, running
from offline.bench.soak_clients import Found
from offline.progress import bars

EXAMPLES = """examples:
  pika bench soak                              1,000 clients for a minute
  pika bench soak --seconds 3600               for an hour
  pika bench soak --clients 100 --seconds 10   to see that it runs

Half of the clients ask for streams; 2 in 100 requests are given up by the client. The last line is JSON: lost got
neither a whole answer nor a clean error, wrong got another question's answer, hung got nothing within a minute.
rss_growth and fd_growth are shares, between a quarter of the run and its end. When all is over, in_flight_left is what
the gateway's own gauges say, fd_left how many more files it has open than before. The upstreams take 2,000 ms of each
answer; p99_ms has faults in it that were mended. Ends with 1 where something was lost, wrong or hung, or is still in
flight.
"""
ARMS = {"cheap": 0.1, "dear": 2.0}
"""USD per million output tokens."""
REPLICAS = 2
LIMITS = {"connect_s": 5, "first_byte_s": 5, "between_chunks_s": 5, "total_s": 12}
NONE_OF = ("lost", "wrong", "hung", "in_flight_left")
"""What makes a run fail."""
SAMPLE_S = 0.5
ERRORS = 10
"""Different ones that are shown."""
QUIET_S = 10.0
"""What the gateway has to close what it opened, and to bring its gauges back to zero."""


@dataclass(frozen=True)
class Sample:
    """What the gateway used at one moment, all its processes."""

    at_s: float
    resident_mb: float
    open_files: int


@dataclass(frozen=True)
class Left:
    """What is not as it was before, once all is over."""

    in_flight: float
    """The sum of the gateway's gauges."""
    open_files: int


@dataclass(frozen=True)
class Soaked:
    found: Found
    samples: list[Sample]
    """While the clients asked."""
    left: Left

    def growth(self, of: str) -> float:
        """By what share of it grew from a quarter of the run to its end: the floor, which bursts leave alone."""
        values = [getattr(sample, of) for sample in self.samples]
        tenth = max(1, len(values) // 10)
        quarter = len(values) // 4
        return float(min(values[-tenth:]) / min(values[quarter : quarter + tenth]) - 1)

    def summary(self) -> dict[str, float]:
        """The last line."""
        verdicts = self.found.verdicts
        return {
            "requests": verdicts.total(),
            "lost": verdicts["lost"],
            "wrong": verdicts["wrong"],
            "hung": verdicts["hung"],
            "rss_growth": round(self.growth("resident_mb"), 4),
            "fd_growth": round(self.growth("open_files"), 4),
            "in_flight_left": self.left.in_flight,
            "fd_left": self.left.open_files,
            "p99_ms": round(self.found.p99_ms, 1),
            "p50_ms": round(self.found.p50_ms, 1),
            "answered": verdicts["answered"],
            "clean_errors": verdicts["refused"],
            "given_up_by_clients": verdicts["left"],
        }


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    try:
        soaked = soak(args.clients, args.seconds, args.faults, args.seed)
    except ServerError as error:
        Console(stderr=True).print(f"pika bench soak: {error}", markup=False)
        return 1
    Console().print(f"{args.clients:,} clients for {args.seconds:g} s, {args.faults:.0%} of requests fail upstream")
    table = Table("", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="right")
    for name, value in soaked.summary().items():
        table.add_row(name, f"{value:,g}" if isinstance(value, int) else f"{value:,.4g}")
    Console().print(table)
    for message, times in soaked.found.errors.most_common(ERRORS):
        Console().print(f"{times:,} clean errors: {message}", markup=False, highlight=False)
    for example in soaked.found.examples:
        Console(stderr=True).print(example, markup=False, highlight=False)
    summary = soaked.summary()
    print(json.dumps(summary))
    return 1 if any(summary[name] for name in NONE_OF) else 0


def soak(clients: int, seconds: float, faults: float, seed: int) -> Soaked:
    """
    Raises:
        ServerError: gateway or upstreams do not start.
    """
    ports = [free_port() for _ in range(len(ARMS) * REPLICAS)]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        command = [sys.executable, "-P", "-m", "offline.bench.soak_upstream", str(faults), str(seed), *map(str, ports)]
        config = scratch / "gateway.yaml"
        config.write_text(yaml.safe_dump(_config(ports, clients)), encoding="utf-8")
        with (
            running(command, ports[0], "/health", scratch / "upstreams.log"),
            pika(config, scratch) as gateway,
            one_process() as process,
        ):
            before = gateway.open_files()
            asking = process.submit(soak_clients.ask, gateway.port, clients, seconds, seed)
            samples = _watch(gateway, asking, seconds)
            return Soaked(asking.result(), samples, _left(gateway, before))


def _config(ports: list[int], clients: int) -> dict[str, object]:
    """Two arms of two replicas each, chosen by chance."""
    models, arms = {}, {}
    for index, (name, usd) in enumerate(ARMS.items()):
        urls = [f"http://{HOST}:{port}/v1" for port in ports[index * REPLICAS : (index + 1) * REPLICAS]]
        models[name] = {
            "model": f"owner/{name}",
            "max_context_tokens": 4096,
            "usd_per_million_tokens": {"input": usd / 4, "output": usd},
            "replicas": [{"url": url} for url in urls],
        }
        arms[name] = {"model": name, "success_probability": 0.5, "mean_tokens": {"input": 20, "output": 16}}
    limits = {**LIMITS, "in_flight": 2 * clients}
    return {"models": models, "arms": arms, "policy": {"name": "random"}, "limits": limits}


def _watch(gateway: Server, asking: "Future[Found]", seconds: float) -> list[Sample]:
    """Samples while the clients start requests, not while the last ones end."""
    samples = []
    began = time.monotonic()
    with bars(TimeElapsedColumn()) as progress:
        task = progress.add_task("clients ask", total=seconds)
        while not asking.done():
            if (at_s := time.monotonic() - began) < seconds:
                samples.append(Sample(at_s, gateway.resident_mb(), gateway.open_files()))
            progress.update(task, completed=min(at_s, seconds))
            time.sleep(SAMPLE_S)
    return samples


def _left(gateway: Server, files_before: int) -> Left:
    """What stays, once it rests."""
    deadline = time.monotonic() + QUIET_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while True:
            text = client.get(f"http://{HOST}:{gateway.port}/metrics", headers={"connection": "close"}).text
            lines = [line for line in text.splitlines() if line.startswith("pika_in_flight")]
            in_flight = sum(float(line.rpartition(" ")[2]) for line in lines)
            time.sleep(SAMPLE_S)
            left = Left(in_flight, gateway.open_files() - files_before)
            if (in_flight == 0 and left.open_files <= 0) or time.monotonic() > deadline:
                return left


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika bench soak",
        description="Many clients at once before upstreams that fail at times: nothing lost, mixed up or left over.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seconds", type=float, default=60, help="how long clients ask (60)")
    parser.add_argument("--clients", type=int, default=1000, help="at once (1000)")
    parser.add_argument("--faults", type=float, default=0.05, metavar="SHARE", help="of requests that fail (0.05)")
    parser.add_argument("--seed", type=int, default=0, help="of faults and clients")
    return parser
