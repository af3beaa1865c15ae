"""Whether the gateway's event loop feels a saturated engine: /health while more prompts come than can be scored."""

import asyncio
import http.client
import json
import time
from concurrent.futures import Executor
from pathlib import Path

import httpx
import numpy as np

from offline.bench.gateway_rivals import pika, upstream
from offline.bench.scoring_model import Model
from offline.bench.servers import HOST
from probes.base import FloatArray

CLIENTS, TEXTS, WORDS = 8, 8, 150
"""Requests at once, prompts in each, words of a prompt."""
EVERY_S = 0.02


async def health_s(model: Model, n: int, others: Executor, scratch: Path) -> FloatArray:
    """Seconds that /health took, each time, (n,); asked from a process of its own."""
    with upstream(0, scratch) as models, pika(_config(model, models.port, scratch), scratch) as gateway:
        loading = [asyncio.create_task(_load(gateway.port, seed)) for seed in range(CLIENTS)]
        try:
            seconds = await asyncio.wrap_future(others.submit(_ask, gateway.port, n))
            for task in loading:
                if task.done():
                    task.result()
            return np.array(seconds)
        finally:
            for task in loading:
                task.cancel()
            await asyncio.gather(*loading, return_exceptions=True)


def _config(model: Model, at: int, scratch: Path) -> Path:
    """One arm with the probe; its server, at a port, is asked for its health alone."""
    served = {
        "model": str(model.folder.absolute()), "max_context_tokens": 4096,
        "usd_per_million_tokens": {"input": 0.1, "output": 0.4}, "replicas": [{"url": f"http://{HOST}:{at}/v1"}],
    }  # fmt: skip
    arm = {"model": "served", "probe": str(model.artifact.folder), "mean_tokens": {"input": 200, "output": 200}}
    config = {"models": {"served": served}, "arms": {"arm": arm}, "policy": {"name": "utility", "lambda": 0}}
    config["engine"] = {"device": model.device}
    file = scratch / "gateway.yaml"
    file.write_text(json.dumps(config))
    return file


async def _load(port: int, seed: int) -> None:
    """Different prompts, one request after the other, whether answered or refused."""
    rng = np.random.default_rng(seed)
    async with httpx.AsyncClient(base_url=f"http://{HOST}:{port}", trust_env=False, timeout=60) as client:
        while True:
            texts = [" ".join(map(str, rng.integers(100, size=WORDS))) for _ in range(TEXTS)]
            answer = await client.post("/score", json={"input": texts})
            if answer.status_code not in (200, 503):
                raise RuntimeError(f"the gateway answered {answer.status_code}: {answer.text[:300]}")


def _ask(port: int, n: int) -> list[float]:
    connection = http.client.HTTPConnection(HOST, port, timeout=60)
    seconds = []
    for _ in range(n):
        time.sleep(EVERY_S)
        began = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        seconds.append(time.perf_counter() - began)
    return seconds
