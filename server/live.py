"""The gateway's parts, opened, and swapped whole when configuration or probes are read again.

A reload checks everything first: what fails leaves all as it was. Requests that have begun end with the parts that they
began with, which are closed after the last of them.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from importlib.util import find_spec

import httpx

from probes.base import ProbeError
from server.config import ConfigError, Settings
from server.engine import opened
from server.health import watching
from server.metrics import Metrics
from server.policies import Policies
from server.pool import Pool, build_pool
from server.predictor import Predictor
from server.state import State

logger = logging.getLogger(__name__)


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
            client = await stack.enter_async_context(httpx.AsyncClient(trust_env=False))
            await stack.enter_async_context(watching(pool, client))
            return State(settings, pool, policies, predictor, engine, self.metrics), stack.pop_all()
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


async def _drain(state: State, opened: AsyncExitStack) -> None:
    """Close parts that no new request gets, once the last of theirs has ended; `limits.total_s` bounds that."""
    try:
        await state.idle.wait()
    finally:
        await opened.aclose()


def _described(pool: Pool) -> str:
    return ", ".join(f"{arm.name} by {arm.probe_name}" for arm in pool.arms if arm.artifact is not None) or "no probes"
