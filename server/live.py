"""The gateway's parts, opened, and swapped whole when configuration or probes are read again.

A reload checks everything first: what fails leaves all as it was. Requests that have begun end with the parts that they
began with, which are closed after the last of them.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib.util import find_spec

from probes.artifact import Artifact
from probes.base import ProbeError
from server.access import admin_sha256
from server.config import ConfigError, Settings
from server.engine import opened
from server.kept import check_ledger, opened_budgets, opened_ledger, shared_by_others
from server.keys.known import Keyring
from server.keys.rate_limit import Buckets
from server.ledger.jumps import Jumps
from server.metrics import Metrics
from server.outcomes.endpoint import opened_recorder
from server.pool import Pool, build_pool
from server.predictor import Predictor
from server.routing.experiment import Canary, build_canary
from server.routing.policies import Policies
from server.routing.session import Sessions
from server.routing.session_ledger import SessionLedger
from server.state import State
from server.tally import Tally
from server.upstream.health import watching
from server.workers.shared_metrics import Shared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """What to serve.

    One of several workers is also told what its parent has found: the probes, and where the engine listens.
    """

    settings: Settings
    artifacts: Mapping[str, Artifact] | None = None
    """By arm; None: read from where the settings say."""
    engine_url: str | None = None
    """Of an engine that is there already; None: the one that the settings name."""


@dataclass(frozen=True)
class Prepared:
    """Parts that are open and could take over."""

    state: State
    opened: AsyncExitStack


class Live:
    """Holds the `State` that the next request gets.

    Raises:
        ConfigError: the configuration does not fit together.
        ProbeError: a probe does not load or does not fit its probe model.
    """

    def __init__(self, order: Order, shared: Shared | None = None) -> None:
        self._parts = build(order)
        self.metrics = Metrics(shared)
        self.sessions = Sessions()
        """They go on over a reload; arms that are no more are not looked for."""
        self.buckets = Buckets(None if shared is None else shared.folder / "buckets")
        self.jumps = Jumps()
        """Of the clock; a reload forgets none."""
        self.state: State
        self.draining = False
        """Whether the gateway goes down: what is open ends, and nothing new should come."""
        self._opened: AsyncExitStack
        self.refusal: str | None = None
        """Why the last reload changed nothing; None where it did."""
        self.reread: Callable[[], Awaitable[bool]] = lambda: self.reload(lambda: self.state.settings)
        """Reload, as whoever runs this process does it; False where it was refused."""
        self._reloading = asyncio.Lock()
        self._leaving: dict[asyncio.Task[None], State] = {}

    async def open(self) -> None:
        """
        Raises:
            ProbeError: the engine cannot load a probe model.
        """
        first = await self._open(self._parts)
        self.state, self._opened = first.state, first.opened
        self._follow(self.state)

    async def close(self) -> None:
        try:
            for state in (self.state, *self._leaving.values()):
                state.pass_on()  # workers that go on say it too
        finally:
            for task in self._leaving:
                task.cancel()
            await asyncio.gather(*self._leaving, return_exceptions=True)
            await self._opened.aclose()
            self.buckets.close()

    async def reload(self, read: Callable[[], Settings]) -> bool:
        """Read settings and probes again and serve with them; False where they fail a check and the old ones stay."""
        async with self._reloading:
            try:
                settings = await asyncio.to_thread(read)
                prepared = await self.prepare(Order(settings))
            except Exception as error:  # whatever it is, the operator shall read of it, and nobody's request end
                self.refusal = log_refusal(error)
                self.metrics.reloads.labels("refused").inc()
                return False
            warn_of_restart(self.state.settings, settings)
            self.take(prepared)
            self.refusal = None
            self.metrics.reloads.labels("done").inc()
            logger.info("reloaded: %s", described(prepared.state.pool))
            return True

    async def prepare(self, order: Order) -> Prepared:
        """Parts that take over with `take`; else the caller closes them.

        Raises:
            ConfigError, ProbeError: they do not fit together.
        """
        return await self._open(await asyncio.to_thread(build, order))

    def take(self, prepared: Prepared) -> asyncio.Task[None]:
        """Serve with these parts from now on; the task ends when the old ones are closed."""
        old_state, old_opened = self.state, self._opened
        self._follow(prepared.state)
        self.state, self._opened = prepared.state, prepared.opened
        task = asyncio.create_task(_leave(old_state, old_opened))
        self._leaving[task] = old_state
        task.add_done_callback(self._leaving.pop)
        return task

    def _follow(self, state: State) -> None:
        """From now on this one serves: there are the series that its requests are counted in."""
        self.metrics.follow(state.pool, state.policies.name, state.budget_ratios)
        self.metrics.trial.follow(state.pool, state.canary is not None, state.shadow is not None)
        state.loop = asyncio.get_running_loop()
        state.tallies = [Tally(i, state.pool.arms, self.metrics) for i in range(len(state.pool.arms))]
        self.metrics.calibration.recorder = state.outcomes

    def drain(self) -> float:
        """The gateway goes down; returns for how many seconds open requests may go on."""
        self.draining = True
        return self.state.settings.server.drain_s

    @property
    def in_flight(self) -> int:
        """Requests that have not ended, those that an earlier configuration serves included."""
        return sum(state.in_flight for state in (self.state, *self._leaving.values()))

    def end_all(self) -> None:
        """Have every request end now, with an error that says why."""
        for state in (self.state, *self._leaving.values()):
            state.end_all()

    async def _open(self, parts: "Parts") -> Prepared:
        order, pool = parts.order, parts.pool
        async with AsyncExitStack() as stack:
            ledger = outcomes = None
            if order.settings.ledger is not None:
                ledger = await stack.enter_async_context(
                    opened_ledger(order.settings, pool, parts.policies, self.metrics, self.jumps)
                )
                outcomes = await stack.enter_async_context(opened_recorder(ledger, order.settings, pool, self.metrics))
            engine = None
            if pool.artifacts:
                engine = await stack.enter_async_context(
                    opened(pool.artifacts, order.settings.engine, self.metrics, order.engine_url)
                )
            await stack.enter_async_context(watching(pool))
            budgets = None
            if parts.keys is not None:
                stack.enter_context(parts.keys.watching())
                if ledger is not None:
                    budgets = await stack.enter_async_context(opened_budgets(order.settings, self.jumps))
            state = State(
                order.settings,
                pool,
                parts.policies,
                parts.predictor,
                engine,
                self.metrics,
                parts.admin_sha256,
                ledger,
                outcomes=outcomes,
                keys=parts.keys,
                buckets=self.buckets,
                budgets=budgets,
            )
            state.canary = parts.canary
            if order.settings.session is not None or parts.canary is not None:
                state.sessions = self.sessions
                if ledger is not None:
                    state.session_ledger = SessionLedger(ledger, shared_by_others(order.settings, ledger))
                    stack.callback(state.session_ledger.close)
            return Prepared(state, stack.pop_all())
        raise AssertionError("an exit stack swallows nothing")


def needs_torch(settings: Settings, pool: Pool) -> bool:
    """Whether a probe model runs on this machine."""
    return settings.engine.kind == "process" and any(one.probe.site is not None for one in pool.artifacts)


@dataclass(frozen=True)
class Parts:
    """All that can be checked without starting anything."""

    order: Order
    pool: Pool
    policies: Policies
    predictor: Predictor
    admin_sha256: bytes | None
    canary: Canary | None
    keys: Keyring | None


def build(order: Order) -> Parts:
    """
    Raises:
        ConfigError: the configuration does not fit together.
        ProbeError: a probe does not load or does not fit its probe model.
    """
    settings = order.settings
    pool = build_pool(settings, order.artifacts)
    if order.engine_url is None and needs_torch(settings, pool) and find_spec("torch") is None:
        raise ConfigError(
            "these probes need torch: pip install 'pika-router[engine]', or use probes that read text alone (tfidf, "
            "length), or give arms a success_probability"
        )
    policies = Policies(settings, pool.tier_cost, pool.probes_sha256)
    check_ledger(settings)
    keys = build_keys(settings, pool, policies)
    predictor, canary = Predictor(pool, settings), build_canary(settings, pool)
    return Parts(order, pool, policies, predictor, admin_sha256(settings.admin), canary, keys)


def build_keys(settings: Settings, pool: Pool, policies: Policies) -> Keyring | None:
    """None where nothing asks for keys.

    Raises:
        ConfigError: the file of keys cannot be used; names the line.
    """
    if settings.keys is None:
        return None
    file = settings.resolve(settings.keys.file)
    return Keyring(file, pool.names, policies, ledger=settings.ledger is not None)


def warn_of_restart(before: Settings, now: Settings) -> None:
    """Name what has changed and a reload does not take."""
    for name in ("host", "port", "public", "workers"):
        if getattr(before.server, name) != getattr(now.server, name):
            logger.warning("server.%s has changed: restart the gateway to take it; a reload takes all the rest", name)


def log_refusal(error: Exception) -> str:
    """Say why a reload changes nothing; returns what the operator may be told elsewhere."""
    told = isinstance(error, ConfigError | ProbeError)
    message = "reload refused, configuration and probes stay as they were: %s"
    logger.error(message, error if told else repr(error), exc_info=None if told else error)
    return str(error) if told else "a failure that nobody foresaw; the gateway's log has the details"


async def _leave(state: State, opened: AsyncExitStack) -> None:
    """Close parts that no new request gets, once the last of theirs has ended; `limits.total_s` bounds that."""
    try:
        await state.idle.wait()
    finally:
        await opened.aclose()


def described(pool: Pool) -> str:
    return ", ".join(f"{arm.name} by {arm.probe_name}" for arm in pool.arms if arm.artifact is not None) or "no probes"
