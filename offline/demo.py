"""`pika demo`: runs `pika up` on the nano pool, sends held-out problems through it, and shows what routing saves.

The same problems, with the same sampling seeds, are routed and put to each arm alone.
"""

import argparse
import asyncio
import json
import math
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from offline.benchmarks.base import Problem
from offline.benchmarks.base import load as load_benchmark
from offline.demo_client import Client, DemoError
from offline.demo_gateway import Gateway, GatewayError, gateway
from offline.demo_pool import AUDIT_SHARE, with_ledger
from offline.demo_summary import Answer, Summary, in_words, summarise, table
from offline.options import positive
from routing_policies.base import NAMES
from server.config import ConfigError
from server.config import load as load_settings

POOL = Path(__file__).parent / "nano_pool" / "pool.yaml"
EXAMPLES = 3
EPILOG = """\
examples:
  pika demo                              200 problems, routed and put to each model alone
  pika demo --requests 400
  pika demo --policy cascade
  pika demo --lambda 0.4                 policy utility, weighing cost by 0.4
  pika demo --port 8000 --keep           stay up afterwards, to try it with curl or your own client

The last line on stdout is the result as JSON.
"""


def main(argv: list[str]) -> int:
    """`pika demo`; exit code 0 only where every request was answered."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.lam is not None and args.policy not in (None, "utility"):
        parser.error(f"--lambda is a knob of the policy utility, not of {args.policy}: leave one of them out")
    # `kill` ends us as Ctrl-C does: through every `finally`. A shell's background jobs ignore Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    stderr = Console(stderr=True)
    try:
        with with_ledger(POOL) if args.keep else nullcontext(POOL) as pool, gateway(pool, args.port) as running:
            with stderr.status("starting three vLLM servers and the gateway ..."):
                running.wait_ready()
            stderr.print(f"gateway ready at {running.url}")
            summary = _run(running, args, pool, stderr)
            if args.keep:
                _keep(running)
    except DemoError as error:
        print(f"pika demo: {error}", file=sys.stderr)
        return 2
    except (GatewayError, ConfigError, httpx.HTTPError) as error:
        print(f"pika demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("pika demo: interrupted", file=sys.stderr)
        return 130
    return 1 if summary.errors else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika demo",
        description="Start the nano pool with real vLLM and the gateway; send it problems; show what routing saves.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=positive, default=200, metavar="N", help="problems to send (default: 200)")
    parser.add_argument("--policy", choices=NAMES, help="instead of the configured one")
    parser.add_argument("--lambda", dest="lam", type=_lambda, metavar="X", help="cost weight of the policy utility")
    parser.add_argument("--port", type=_port, metavar="P", help="of the gateway (default: any free one)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="stay up afterwards, until Ctrl-C or SIGTERM, with a ledger of what was decided and what was right, "
        "conversations, and an audit",
    )
    parser.add_argument("--seed", type=int, default=1, help="of problems, sampling and bootstrap (default: 1)")
    return parser


def _port(text: str) -> int:
    if not 1 <= (port := int(text)) <= 65535:
        raise argparse.ArgumentTypeError("must be between 1 and 65535")
    return port


def _lambda(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be a number from 0 up")
    return number


def _routing(args: argparse.Namespace) -> dict[str, Any]:
    """The `routing` object of every routed request."""
    if args.lam is not None:
        return {"policy": "utility", "lambda": args.lam}
    return {"policy": args.policy} if args.policy else {}


def _run(running: Gateway, args: argparse.Namespace, pool: Path, stderr: Console) -> Summary:
    benchmark = load_benchmark("running_total")
    # Training and tuning have seen neither this split nor, where it is not 0, this seed.
    problems = benchmark.problems("test", args.requests, args.seed)
    client = Client(running.url, benchmark, load_settings(POOL), _routing(args), args.seed)
    client.decision(problems[0])  # a request that is refused is refused before the others
    try:
        routed, always, probe_cost_usd = asyncio.run(_answer_all(client, problems, stderr))
        if args.keep:
            asyncio.run(client.tell(routed))
    except httpx.HTTPError:
        running.check()
        raise
    summary = summarise(routed, always, probe_cost_usd, args.seed)
    out = Console()
    out.print(table(summary))
    for problem in _examples(problems, routed):
        out.print(f"\n{problem.problem}", markup=False, soft_wrap=True)
        out.print(f"  {_explain(client.decision(problem))}", markup=False, soft_wrap=True)
    out.print(f"\n{in_words(summary)}\n", markup=False, soft_wrap=True)
    if client.failures:
        stderr.print(f"{len(client.failures)} requests failed, the first with: {client.failures[0]}", markup=False)
    if args.keep:
        print(_urls(running.url, problems[0], pool))
    print(json.dumps(summary.to_json()), flush=True)
    running.check()
    return summary


async def _answer_all(
    client: Client, problems: Sequence[Problem], stderr: Console
) -> tuple[list[Answer], dict[str, list[Answer]], float]:
    """Routed answers, each arm's answers, and what the probe cost for the routed ones."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr) as progress:

        async def answers(model: str, description: str) -> list[Answer]:
            task = progress.add_task(description, total=len(problems))
            return await client.answer_all(model, problems, lambda: progress.advance(task))

        # Routed ones last: they are what the dashboard's list of the last decisions then begins with.
        always = {arm: await answers(arm, f"always {arm}") for arm in client.settings.arms}
        before_usd = client.probe_cost_usd()
        routed = await answers("auto", "routed")
        probe_cost_usd = client.probe_cost_usd() - before_usd
    return routed, always, probe_cost_usd


def _examples(problems: Sequence[Problem], routed: Sequence[Answer]) -> list[Problem]:
    """Problems that went to different arms, as far as there are any."""
    first_of_arm = {answer.arm: i for i, answer in reversed(list(enumerate(routed)))}
    chosen = sorted({*first_of_arm.values()})[:EXAMPLES]
    others = [i for i in range(len(problems)) if i not in chosen]
    return [problems[i] for i in sorted((chosen + others)[:EXAMPLES])]


def _explain(decision: dict[str, Any]) -> str:
    arms = decision["arms"]
    known = {name: arm["success_probability"] for name, arm in arms.items() if arm["success_probability"] is not None}
    probabilities = ", ".join(f"{name} {probability:.0%}" for name, probability in known.items())
    return f"P(correct): {probabilities or 'unknown'} -> {decision['arm']} ({decision['policy']})"


def _urls(url: str, problem: Problem, pool: Path) -> str:
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": problem.problem}]})
    return (
        f"The gateway stays up until Ctrl-C. OpenAI base URL: {url}/v1   metrics: {url}/metrics\n"
        f"Try: curl -i {url}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}\n"
        f"Dashboard: {url}/dashboard\n"
        f"Its ledger knows which of the routed answers were right: pika replay --ledger {shlex.quote(str(pool))}\n"
        f"Conversations stay on their arm, and {AUDIT_SHARE:.0%} of the routed requests went to a random one "
        "(audit), so that outcomes speak for every arm.\n"
    )


def _keep(running: Gateway) -> None:
    """Stay up until we are told to end.

    Raises:
        GatewayError: the gateway ended first.
    """
    try:
        running.wait()
    except KeyboardInterrupt:
        print("stopping ...", file=sys.stderr)
