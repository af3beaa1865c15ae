"""All parts of one running gateway, built once in `app.py` and handed to every request."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from probes.engine.base import Engine
from server.config import Settings
from server.errors import DrainingError, OverloadedError, UpstreamTimeoutError
from server.metrics import Metrics
from server.policies import Policies
from server.pool import Pool
from server.predictor import Predictor


@dataclass
class State:
    settings: Settings
    pool: Pool
    policies: Policies
    predictor: Predictor
    engine: Engine | None
    """None where no arm has a probe."""
    client: httpx.AsyncClient
    metrics: Metrics
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is in flight."""
    cut_short: bool = False
    """Whether requests in flight have been told to end: the gateway goes down."""
    _deadlines: set[asyncio.Timeout] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.idle.set()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Hold one of `limits.in_flight` places, for `limits.total_s` at the most.

        Raises:
            OverloadedError: all are taken.
            UpstreamTimeoutError: the time is up.
            DrainingError: the gateway goes down and has waited long enough.
        """
        limits = self.settings.limits
        if self.in_flight >= limits.in_flight:
            raise OverloadedError("too many requests in flight (limits.in_flight); try again shortly")
        self.in_flight += 1
        self.idle.clear()
        deadline = asyncio.timeout(limits.total_s)
        self._deadlines.add(deadline)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if self.cut_short:
                raise DrainingError("the gateway is being stopped; ask again") from error
            raise UpstreamTimeoutError("the request took longer than limits.total_s") from error
        finally:
            self._deadlines.discard(deadline)
            self.in_flight -= 1
            if not self.in_flight:
                self.idle.set()

    def end_all(self) -> None:
        """Have every request in flight end now, with an error that says why."""
        self.cut_short = True
        for deadline in self._deadlines:
            if not deadline.expired():
                deadline.reschedule(0)


def current(scope: MutableMapping[str, Any]) -> State:
    """What serves a request that begins now; it keeps this one to its end, whatever is reloaded meanwhile."""
    state: State = scope["state"]["live"].state
    return state
