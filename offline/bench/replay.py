"""`pika bench replay`: a million decisions in a ledger, replayed, and shown by a gateway's dashboard.

The ledger is SQLite in a temporary folder, filled through the ledger's own writer of rows. The command is timed as a
user meets it, a process from start to end; the dashboard's queries over the network, each for the first time.
"""

import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import yaml
from rich.console import Console
from rich.progress import TimeElapsedColumn
from rich.table import Table

from offline.bench.replay_ledger import POOL, fill
from offline.bench.servers import HOST, ServerError, free_port, running
from offline.child import environment
from offline.progress import bars
from offline.replay_traffic import read_traffic
from routing_policies.base import build
from routing_policies.replay import replay
from server.ledger.database import open_database

EXAMPLES = """examples:
  pika bench replay                          a million decisions: about a minute, 1 GB of memory, 300 MB of disk
  pika bench replay --decisions 100000

The last line is JSON: seconds (the whole command `pika replay`), seconds_read and seconds_replay (of which: the ledger,
one policy), dashboard_ms (each of the dashboard's queries, over 30 days) and the slowest of them.
"""
MOST_DECISIONS = 5_000_000
DAYS = 29
"""Over which the decisions are spread; the dashboard shows up to 30."""
REPETITIONS = 3
"""The quickest counts."""
QUERIES = ("summary", "mix", "frontier", "replay", "reliability", "drift", "decisions")
TIMEOUT_S = 120.0
POLICY = "utility lambda=0.2"


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="pika bench replay",
        description="A million decisions in a ledger: replayed, and shown by a gateway's dashboard.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--decisions", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the requests")
    args = parser.parse_args(argv)
    if not 100 <= args.decisions <= MOST_DECISIONS:
        parser.error(f"--decisions is a whole number from 100 to {MOST_DECISIONS:,}")
    try:
        with tempfile.TemporaryDirectory(prefix="pika-bench-") as folder:
            result = measure(Path(folder), args.decisions, args.seed)
    except (ServerError, httpx.HTTPError) as error:
        print(f"pika bench replay: {error}", file=sys.stderr)
        return 1
    Console().print(_table(result))
    print(json.dumps(result))
    return 0


def measure(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """
    Raises:
        ServerError: the gateway did not start, or the command failed.
        httpx.HTTPError: the dashboard did not answer.
    """
    config, file = _config(folder), folder / "ledger.sqlite"
    with bars("{task.completed:,}", TimeElapsedColumn(), transient=True) as progress:
        task = progress.add_task("Filling the ledger", total=count)
        began, now = time.perf_counter(), time.time()
        database = open_database(f"sqlite:///{file}")
        fill(
            database,
            count,
            seed,
            now - DAYS * 86_400,
            now - 1,
            on_progress=lambda n: progress.update(task, completed=n),
        )
        filled = time.perf_counter() - began
        task = progress.add_task("Replaying", total=None)
        began = time.perf_counter()
        traffic = read_traffic(database, None, None, None, None, lambda done, total: None)
        read = time.perf_counter() - began
        policy = build("utility", {"lambda": 0.2}, traffic.tier_cost)
        replayed = min(_seconds_of(lambda: replay(traffic.record, policy)) for _ in range(REPETITIONS))
        database.close()
        command = min(_seconds_of(lambda: _command(config)) for _ in range(REPETITIONS))
        task = progress.add_task("Asking the dashboard", total=None)
        dashboard = dict(_dashboard(config, folder / "gateway.log"))
    return {
        "seconds": round(command, 2),
        "seconds_read": round(read, 2),
        "seconds_replay": round(replayed, 3),
        "dashboard_ms": {query: round(seconds * 1e3, 1) for query, seconds in dashboard.items()},
        "dashboard_slowest_ms": round(max(dashboard.values()) * 1e3, 1),
        "decisions": count,
        "bytes_per_decision": round(file.stat().st_size / count),
        "seconds_fill": round(filled, 1),
    }


def _config(folder: Path) -> Path:
    """A pool like the ledger's, so that its decisions are the gateway's own."""
    models, arms = {}, {}
    for name, (input_usd, output_usd), (tokens_in, tokens_out) in zip(
        POOL.arms, POOL.prices, POOL.mean_tokens, strict=True
    ):
        models[name] = {
            "model": f"owner/{name}",
            "max_context_tokens": 4096,
            "usd_per_million_tokens": {"input": input_usd, "output": output_usd},
            "replicas": [{"url": f"http://{HOST}:1/v1"}],  # nobody is asked
        }
        mean = {"input": tokens_in, "output": tokens_out}
        arms[name] = {"model": name, "success_probability": 0.5, "mean_tokens": mean}
    pool = {"models": models, "arms": arms, "policy": dict(POOL.policy), "ledger": {"url": "sqlite:///ledger.sqlite"}}
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump(pool, sort_keys=False), encoding="utf-8")
    return file


def _seconds_of(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _command(config: Path) -> None:
    command = [sys.executable, "-m", "server", "replay", "--ledger", str(config), "--policy", POLICY, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=TIMEOUT_S)
    if done.returncode:
        raise ServerError(f"pika replay failed: {done.stderr[-1000:]}")


def _dashboard(config: Path, log: Path) -> Iterator[tuple[str, float]]:
    """Seconds of each query over 30 days."""
    port = free_port()
    command = [sys.executable, "-m", "server", "serve", str(config), "--host", HOST, "--port", str(port)]
    with (
        running(command, port, "/health", log),
        httpx.Client(base_url=f"http://{HOST}:{port}", timeout=TIMEOUT_S, trust_env=False) as client,
    ):
        client.get("/dashboard").raise_for_status()
        for query in QUERIES:
            began = time.perf_counter()
            client.get(f"/dashboard/data/{query}", params={"period": "30d", "lambda": "0.2"}).raise_for_status()
            yield query, time.perf_counter() - began


def _table(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['decisions']:,} decisions, {result['bytes_per_decision']} bytes each")
    table.add_column("")
    table.add_column("seconds", justify="right")
    table.add_row("pika replay, the whole command", f"{result['seconds']:.2f}")
    table.add_row("  reading the ledger", f"{result['seconds_read']:.2f}")
    table.add_row("  one policy", f"{result['seconds_replay']:.3f}")
    for query, ms in result["dashboard_ms"].items():
        table.add_row(f"dashboard: {query}", f"{ms / 1e3:.3f}")
    return table
