"""Active health checks, and what vLLM servers say of their load."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import httpx

from server.pool import Pool
from server.upstream.keep_alive import tls_context
from server.upstream.replica import Load, Replica

logger = logging.getLogger(__name__)

HEALTH_INTERVAL_S = 2.0
MAX_METRICS_BYTES = 4 * 1024 * 1024
GAUGE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc|gpu_cache_usage_perc)(?:\{[^}]*\})? (\S+)$",
    re.MULTILINE,
)


def health_client() -> httpx.AsyncClient:
    """Trusts the certificates that requests trust, knows no proxy, asks any number of replicas at once."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(verify=tls_context(), trust_env=False, limits=limits)


@asynccontextmanager
async def watching(pool: Pool, client: httpx.AsyncClient) -> AsyncIterator[None]:
    """Check every replica now and then on and on; closes the connections to them at the end."""
    replicas = [replica for model in pool.models for replica in model.replicas]
    compared = {replica for model in pool.models if len(model.replicas) > 1 for replica in model.replicas}
    await asyncio.gather(*(check(replica, client, replica in compared) for replica in replicas))
    watchers = [asyncio.create_task(_watch(replica, client, replica in compared)) for replica in replicas]
    try:
        yield
    finally:
        for watcher in watchers:
            watcher.cancel()
        for watcher in watchers:
            with suppress(asyncio.CancelledError):
                await watcher
        for replica in replicas:
            replica.upstream.close()


async def _watch(replica: Replica, client: httpx.AsyncClient, load: bool) -> None:
    while True:
        await asyncio.sleep(HEALTH_INTERVAL_S)
        await check(replica, client, load)


async def check(replica: Replica, client: httpx.AsyncClient, load: bool) -> None:
    """Ask for /health and, with `load`, for /metrics. A server without these counts as up: it answered."""
    root = replica.url.removesuffix("/v1")
    headers = dict(replica.headers)
    try:
        # httpx's own timeout is per read: a server that drips would hold up the check.
        async with asyncio.timeout(HEALTH_INTERVAL_S):
            async with client.stream("GET", root + "/health", headers=headers) as response:
                async for _ in response.aiter_raw():
                    break  # read to its end, which is at once, the connection can be kept
                healthy = response.status_code < 500
    except (httpx.HTTPError, TimeoutError):
        healthy = False
    if load:
        replica.load = await _ask_load(replica, client, root + "/metrics", headers) if healthy else Load()
    if healthy != replica.healthy:
        logger.log(
            logging.INFO if healthy else logging.WARNING, "replica %s is %s", replica.name, "up" if healthy else "down"
        )
        if healthy:
            now = time.monotonic()
            replica.breaker.try_now(now)
            replica.recovered(now)
    replica.healthy = healthy


async def _ask_load(replica: Replica, client: httpx.AsyncClient, url: str, headers: dict[str, str]) -> Load:
    text = bytearray()
    ours = replica.in_flight
    with suppress(httpx.HTTPError, TimeoutError):
        async with asyncio.timeout(HEALTH_INTERVAL_S), client.stream("GET", url, headers=headers) as response:
            async for part in response.aiter_raw():
                text += part
                if len(text) > MAX_METRICS_BYTES:
                    return Load()
            return parse_load(bytes(text), ours)
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
