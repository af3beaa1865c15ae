"""`pika bench rollouts`: how busy rollouts keep a real vLLM server, beside `vllm bench serve` and a bare loop.

All three ask the same problems of the same server with the same number of requests in flight, by turns, and nobody
streams. The bare loop decodes nothing, retries nothing and keeps nothing: what the server can do at all.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import aiohttp
import orjson
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from offline import endpoint_sampler
from offline.bench.vllm_process import ServerError, running
from offline.benchmarks.running_total import RunningTotal
from offline.endpoint_sampler import Request, prepare
from offline.options import positive
from offline.progress import bars
from offline.samplers import Job, Limits, Sample, SampledArm, SamplingError, job_seed
from server.config import load

EXAMPLES = """examples:
  pika bench rollouts                      nano-small: some minutes on 2 cores, most of them vLLM's imports
  pika bench rollouts --model nano-large --concurrency 64
  pika bench rollouts --quick              once each, few problems

The last line is JSON: ratio is our answers per second over those of `vllm bench serve`, ratio_bare over the loop's.
"""
CONFIG = Path(__file__).parents[1] / "nano_pool" / "pool.yaml"
SEED = 11
REPETITIONS, PROBLEMS = 5, 1200
QUICK_REPETITIONS, QUICK_PROBLEMS = 1, 150

# `vllm bench serve` itself looks for a distribution called vllm, which the CPU build is not.
BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def main(argv: list[str]) -> int:
    args = _parser().parse_args(argv)
    repetitions, problems = (QUICK_REPETITIONS, QUICK_PROBLEMS) if args.quick else (REPETITIONS, PROBLEMS)
    try:
        rates = measure(args.model, problems, repetitions, args.concurrency)
    except (ServerError, SamplingError) as error:
        print(f"pika bench rollouts: {error}", file=sys.stderr)
        return 1
    shown = Table(title=f"answers per second, {args.concurrency} requests in flight")
    for column in ("client", "median", "each time"):
        shown.add_column(column, justify="left" if column == "client" else "right")
    for name, each in rates.items():
        shown.add_row(name, f"{median(each):.1f}", " ".join(f"{rate:.1f}" for rate in each))
    Console().print(shown)
    ours = median(rates["pika rollouts"])
    summary = {
        "ratio": round(ours / median(rates["vllm bench serve"]), 3),
        "ratio_bare": round(ours / median(rates["bare loop"]), 3),
        "answers_per_s": {name: [round(rate, 1) for rate in each] for name, each in rates.items()},
        "model": args.model,
        "concurrency": args.concurrency,
        "problems": problems,
    }
    print(json.dumps(summary))
    return 0


def measure(model: str, problems: int, repetitions: int, concurrency: int) -> dict[str, list[float]]:
    """Answers per second by client, one for each repetition.

    Raises:
        ServerError: vLLM's server or its benchmark does not run.
        SamplingError: the server fails.
    """
    rates: dict[str, list[float]] = {"pika rollouts": [], "vllm bench serve": [], "bare loop": []}
    with _progress() as progress, tempfile.TemporaryDirectory() as folder:
        task = progress.add_task("starting vLLM", total=repetitions * len(rates))
        arm = _arm(model)
        with running(arm, Path(folder)) as url:
            jobs = _jobs(replace(arm, urls=(url,)), problems)
            requests = prepare(jobs)
            clients: dict[str, Callable[[], float]] = {
                "pika rollouts": lambda: _ours(jobs, concurrency),
                "vllm bench serve": lambda: _bench_serve(requests, url, concurrency, Path(folder)),
                "bare loop": lambda: asyncio.run(_bare_loop(requests, url, concurrency)),
            }
            for name in ("pika rollouts", "bare loop"):
                clients[name]()  # the first requests are slow, and so are imports
            for _ in range(repetitions):
                for name, client in clients.items():
                    progress.update(task, description=name)
                    rates[name].append(client())
                    progress.advance(task)
    return rates


def _arm(name: str) -> SampledArm:
    settings = load(CONFIG)
    model = settings.models[name]
    [launch] = [replica.launch for replica in model.replicas if replica.launch is not None]
    return SampledArm(
        name=name,
        model=name,
        reference=model.model,
        source=settings.model_source(model.model),
        max_context_tokens=model.max_context_tokens,
        fields={"temperature": 0.7, "max_tokens": 64},
        api_keys=("none",),
        engine_args=tuple(launch.args),
        env=launch.env,
    )


def _jobs(arm: SampledArm, n: int) -> list[Job]:
    benchmark = RunningTotal()
    return [
        Job(arm, "test", problem.problem_id, benchmark.messages(problem), job_seed(SEED, problem.problem_id))
        for problem in benchmark.problems("test", n, SEED)
    ]


def _ours(jobs: Sequence[Job], concurrency: int) -> float:
    samples: list[Sample] = []
    start = time.perf_counter()
    endpoint_sampler.sample(jobs, 1, samples.append, Limits(concurrency))
    return len(samples) / (time.perf_counter() - start)


async def _bare_loop(requests: Sequence[Request], url: str, concurrency: int) -> float:
    waiting = iter(requests)

    async def work() -> None:
        for request in waiting:
            body = orjson.dumps({**request.body, "seed": request.job.seed})
            async with session.post(
                f"{url}/chat/completions", data=body, headers={"content-type": "application/json"}
            ) as response:
                response.raise_for_status()
                await response.read()

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return len(requests) / (time.perf_counter() - start)


def _bench_serve(requests: Sequence[Request], url: str, concurrency: int, folder: Path) -> float:
    """By its own clock, which its start is no part of."""
    arm = requests[0].job.arm
    prompts, result = folder / "prompts.jsonl", folder / "result.json"
    prompts.write_text("".join(json.dumps({"prompt": one.body["messages"][-1]["content"]}) + "\n" for one in requests))
    options = {
        "--backend": "openai-chat",
        "--base-url": url.removesuffix("/v1"),
        "--endpoint": "/v1/chat/completions",
        "--model": arm.model,
        "--tokenizer": arm.source,
        "--dataset-name": "custom",
        "--dataset-path": str(prompts),
        "--custom-output-len": str(arm.max_tokens),
        "--num-prompts": str(len(requests)),
        "--max-concurrency": str(concurrency),
        "--temperature": str(arm.fields["temperature"]),
        "--result-dir": str(folder),
        "--result-filename": result.name,
    }
    flags = ["--no-stream", "--disable-shuffle", "--disable-tqdm", "--save-result"]
    words = [word for option in options.items() for word in option]
    command = [sys.executable, "-P", "-c", BENCH_SERVE, *words, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServerError(f"`vllm bench serve` ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    measured = json.loads(result.read_text())
    if measured["completed"] != len(requests):
        raise ServerError(f"`vllm bench serve` completed {measured['completed']} of {len(requests)} requests")
    return float(measured["request_throughput"])


def _progress() -> Progress:
    return bars(MofNCompleteColumn(), "left", TimeRemainingColumn())


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika bench rollouts",
        description="How busy rollouts keep a real vLLM server, beside `vllm bench serve` and a bare loop.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=list(load(CONFIG).models), default="nano-small", help="of the nano pool")
    parser.add_argument("--concurrency", type=positive, default=32, metavar="N", help="in flight (default: 32)")
    parser.add_argument("--quick", action="store_true", help="once each, few problems")
    return parser
