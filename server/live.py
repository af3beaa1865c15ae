"""The gateway's parts, opened, and swapped whole when configuration or probes are read again.

A reload checks everything first: what fails leaves all as it was. Requests that have begun end with the parts that they
began with, which are closed after the last of them.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from importlib.util import find_spec

import httpx

from probes.base import ProbeError
from server.config import ConfigError, Settings
from server.engine import opened
from server.metrics import Metrics
from server.policies import Policies
from server.pool import Pool, build_pool, check_health, watch_health
from server.predictor import Predictor
from server.state import State

logger = logging.getLogger(__name__)

KEEPALIVE_EXPIRY_S = 2.0
"""Idle upstream connections are dropped well before vLLM drops them, after 5 s: none closes under a request."""


class Live:
    """Holds the `State` that the next request gets.

    Raises:
        ConfigError: the configuration does not fit together.
        ProbeError: a probe does not load or does not fit its probe model.
    """

    def __init__(self, settings: Settings) -> None:
        self._parts = _build(settings)
        self.metrics = Metrics()
        self.state: State
        self._opened: AsyncExitStack
        self._reloading = asyncio.Lock()
        self._draining: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """
        Raises:
            ProbeError: the engine cannot load a probe model.
        """
        self.state, self._opened = await self._open(*self._parts)
        self.metrics.follow(self.state.pool, self.state.policies.name)
        logger.info("routing: %s", _described(self.state.pool))

    async def close(self) -> None:
        for task in self._draining:
            task.cancel()
        await asyncio.gather(*self._draining, return_exceptions=True)
        await self._opened.aclose()

    async def reload(self, read: Callable[[], Settings]) -> bool:
        """Read settings and probes again and serve with them; False where they fail a check and the old ones stay."""
        async with self._reloading:
            try:
                parts = await asyncio.to_thread(lambda: _build(read()))
                state, opened = await self._open(*parts)
            except Exception as error:  # whatever it is, the operator shall read of it, and nobody's request end
                told = isinstance(error, ConfigError | ProbeError)
                message = "reload refused, configuration and probes stay as they were: %s"
                logger.error(message, error if told else repr(error), exc_info=not told)
                self.metrics.reloads.labels("refused").inc()
                return False
            old_state, old_opened = self.state, self._opened
            self.metrics.follow(state.pool, state.policies.name)
            self.state, self._opened = state, opened
            self.metrics.reloads.labels("done").inc()
            logger.info("reloaded: %s", _described(state.pool))
            task = asyncio.create_task(_drain(old_state, old_opened))
            self._draining.add(task)
            task.add_done_callback(self._draining.discard)
            return True

    async def _open(
        self, settings: Settings, pool: Pool, policies: Policies, predictor: Predictor
    ) -> tuple[State, AsyncExitStack]:
        async with AsyncExitStack() as stack:
            engine = None
            if pool.artifacts:
                engine = await stack.enter_async_context(opened(pool.artifacts, settings.engine, self.metrics))
            limits = httpx.Limits(keepalive_expiry=KEEPALIVE_EXPIRY_S)
            client = await stack.enter_async_context(httpx.AsyncClient(limits=limits, trust_env=False))
            replicas = [replica for model in pool.models for replica in model.replicas]
            await asyncio.gather(*(check_health(replica, client) for replica in replicas))
            await stack.enter_async_context(_watching(pool, client))
            return State(settings, pool, policies, predictor, engine, client, self.metrics), stack.pop_all()
        raise AssertionError("an exit stack swallows nothing")


def needs_torch(settings: Settings, pool: Pool) -> bool:
    """Whether a probe model runs on this machine."""
    return settings.engine.kind == "process" and any(one.probe.site is not None for one in pool.artifacts)


def _build(settings: Settings) -> tuple[Settings, Pool, Policies, Predictor]:
    """All that can be checked without starting anything."""
    pool = build_pool(settings)
    if needs_torch(settings, pool) and find_spec("torch") is None:
        raise ConfigError(
            "these probes need torch: pip install 'pika-router[engine]', or use probes that read text alone (tfidf, "
            "length), or give arms a success_probability"
        )
    return settings, pool, Policies(settings, pool.tier_cost, pool.probes_sha256), Predictor(pool, settings)


@asynccontextmanager
async def _watching(pool: Pool, client: httpx.AsyncClient) -> AsyncIterator[None]:
    watcher = asyncio.create_task(watch_health(pool, client))
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def _drain(state: State, opened: AsyncExitStack) -> None:
    """Close parts that no new request gets, once the last of theirs has ended; `limits.total_s` bounds that."""
    try:
        await state.idle.wait()
    finally:
        await opened.aclose()


def _described(pool: Pool) -> str:
    return ", ".join(f"{arm.name} by {arm.probe_name}" for arm in pool.arms if arm.artifact is not None) or "no probes"
