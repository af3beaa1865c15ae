"""Active health checks, and what vLLM servers say of their load."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from server.pool import Pool
from server.upstream.keep_alive import ExchangeError, Upstream
from server.upstream.replica import Load, Replica

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 2.0
MAX_METRICS_BYTES = 4 * 1024 * 1024
GAUGE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc)(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)


@asynccontextmanager
async def watching(pool: Pool) -> AsyncIterator[None]:
    """Check every replica now then and on and on; closes the connections to them at the end."""
    replicas = [replica for model in pool.models for replica in model.replicas]
    compared = {replica for model in pool.models if len(model.replicas) > 1 for replica in model.replicas}
    # On connections of their own: what a check left open may be stale when a request comes.
    asked = [(replica, Upstream(replica.url, replica.headers), replica in compared) for replica in replicas]
    await asyncio.gather(*(check(*one) for one in asked))
    watchers = [asyncio.create_task(_watch(*one)) for one in asked]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
        for watcher in watchers:
            with suppress(asyncio.CancelledError):
                await watcher
        for replica, upstream, _ in asked:
            upstream.close()
            replica.upstream.close()


async def _watch(replica: Replica, upstream: Upstream, load: bool) -> None:
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        await check(replica, upstream, load)


async def check(replica: Replica, upstream: Upstream, load: bool) -> None:
    """Ask for /health and, with `load`, for /metrics. A server without these counts as up: it answered."""
    try:
        status, _ = await upstream.get("/health", None, HEALTH_INTERVAL_S)
        healthy = status < 500
    except ExchangeError:
        healthy = False
    if load:
        replica.load = await _ask_load(replica, upstream) if healthy else Load()
    if healthy != replica.healthy:
        logger.log(
            logging.INFO if healthy else logging.WARNING, "replica %s is %s", replica.name, "up" if healthy else "down"
        )
        if healthy:
            now = time.monotonic()
            replica.breaker.try_now(now)
            replica.recovered(now)
    replica.healthy = healthy


async def _ask_load(replica: Replica, upstream: Upstream) -> Load:
    ours = replica.in_flight
    with suppress(ExchangeError):
        _, text = await upstream.get("/metrics", MAX_METRICS_BYTES, HEALTH_INTERVAL_S)
        return parse_load(text, ours)
    return Load()


def parse_load(text: bytes, ours: int) -> Load:
    """vLLM's own gauges out of its /metrics, summed over its engines; the fullest cache counts."""
    sums = {b"num_requests_running": 0.0, b"num_requests_waiting": 0.0}
    cache_use = 0.0
    for name, number in GAUGE.findall(text):
        try:
            value = float(number)
        except ValueError:
            continue
        if not 0 <= value < 1e9:
            continue
        if name in sums:
            sums[name] += value
        else:
            cache_use = max(cache_use, min(value, 1.0))
    return Load(sums[b"num_requests_running"], sums[b"num_requests_waiting"], cache_use, ours)
