"""Samples on a Ray cluster: `pika rollouts --runner ray`.

Ray Data's actors run the client of `endpoint_sampler`; arms without an endpoint are left to `ray_vllm`. What actors
have sampled streams back to the command, which keeps the journal: a run resumes as any other does.

RAY_ADDRESS names the cluster (`auto`, `ray://head:10001`), whose nodes need the same `pika-router[ray]`; without it,
Ray starts on this machine.
"""

import asyncio
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from importlib import import_module
from typing import Any

from offline.endpoint_sampler import Request, prepare, sampled
from offline.samplers import Job, Limits, Record, Sample, SampledArm, SamplingError

CPUS_PER_ACTOR = 0.25
"""Actors wait for answers. Those that took whole CPUs would starve the readers that feed them."""
ROUNDS = 4
"""Requests of one task as a multiple of those in flight: what comes back together, and is lost with the command."""
OBJECT_STORE_BYTES = 256 * 2**20
"""Of a Ray that is started here: jobs and samples are small."""


def sample(jobs: Sequence[Job], k: int, record: Record, limits: Limits, replicas: int) -> None:
    """Sample k answers for each job.

    Args:
        replicas: actors, which share `limits.concurrency`; of an arm without an endpoint: engines.

    Raises:
        SamplingError: Ray does not start, an endpoint cannot be reached or refuses a request, or an arm has no endpoint
            and vLLM cannot run here.
    """
    served = [job for job in jobs if job.arm.urls]
    others: dict[str, list[Job]] = {}
    for job in jobs:
        if not job.arm.urls:
            others.setdefault(job.arm.model, []).append(job)
    with _cluster():
        if served:
            for finished in _from_endpoints(served, k, limits, replicas):
                record(finished)
        if others:
            from offline import ray_vllm

            for theirs in others.values():
                ray_vllm.sample(theirs, k, record, replicas)


@contextmanager
def _cluster() -> Iterator[None]:
    """The cluster of RAY_ADDRESS, else one of our own; or the one that this process is connected to already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray: Any = import_module("ray")
    data: Any = import_module("ray.data")
    ours = not ray.is_initialized()
    address = os.environ.get("RAY_ADDRESS", "local")
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES} if address == "local" else {}
    try:
        if ours:
            ray.init(address, logging_level=logging.ERROR, **local)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise SamplingError(f"Ray does not start at {address}: {error}; RAY_ADDRESS names a cluster") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    data.DataContext.get_current().enable_progress_bars = False  # the command has its own
    try:
        yield
    except ray.exceptions.RayError as error:
        raise SamplingError(f"Ray failed: {error}") from error
    finally:
        if ours:
            ray.shutdown()


def _from_endpoints(jobs: Sequence[Job], k: int, limits: Limits, actors: int) -> Iterator[Sample]:
    data: Any = import_module("ray.data")
    concurrency = max(1, limits.concurrency // actors)
    requests = [_encode(request) for request in prepare(jobs)]
    tasks = -(-len(requests) // (ROUNDS * concurrency))
    arms = {job.arm.name: job.arm for job in jobs}
    finished = data.from_items(requests, override_num_blocks=tasks).map_batches(
        Client,
        fn_constructor_args=(arms, k, replace(limits, concurrency=concurrency)),
        batch_size=None,
        compute=data.ActorPoolStrategy(size=min(actors, tasks)),
        num_cpus=CPUS_PER_ACTOR,
    )
    for batch in finished.iter_batches(batch_size=None, prefetch_batches=0):
        for line in batch["line"]:
            message = json.loads(line)
            if "error" in message:
                raise SamplingError(message["error"])
            yield Sample(**message)


class Client:
    """An actor."""

    def __init__(self, arms: Mapping[str, SampledArm], k: int, limits: Limits) -> None:
        self._arms = arms
        self._k = k
        self._limits = limits

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[str]]:
        """A line of JSON for each sample; where one fails, those that were sampled before, then what is wrong."""
        return {"line": asyncio.run(self._lines([_decode(line, self._arms) for line in batch["line"]]))}

    async def _lines(self, requests: Sequence[Request]) -> list[str]:
        lines = []
        try:
            async for one in sampled(requests, self._k, self._limits):
                lines.append(json.dumps(asdict(one)))
        except SamplingError as error:
            lines.append(json.dumps({"error": str(error)}))
        return lines


def _encode(request: Request) -> dict[str, str]:
    job = request.job
    fields = [job.arm.name, job.split, job.problem_id, job.seed, request.body, request.formatted_prompt]
    return {"line": json.dumps(fields)}


def _decode(line: str, arms: Mapping[str, SampledArm]) -> Request:
    arm, split, problem_id, seed, body, formatted_prompt = json.loads(line)
    return Request(Job(arms[arm], split, problem_id, body["messages"], seed), body, formatted_prompt)
