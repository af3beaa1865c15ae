"""All parts of one running gateway, built once in `app.py` and handed to every request."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from probes.engine.base import Engine
from routing_policies.base import Policy
from server.config import Settings
from server.errors import OverloadedError, TotalTimeError
from server.metrics import Metrics
from server.policies import Policies
from server.pool import Pool
from server.predictor import Predictor
from server.retry_budget import RetryBudget
from server.series import ArmSeries


@dataclass
class State:
    settings: Settings
    pool: Pool
    policies: Policies
    predictor: Predictor
    engine: Engine | None
    """None where no arm has a probe."""
    metrics: Metrics
    retries: RetryBudget = field(default_factory=RetryBudget)
    constant_choices: dict[Policy, int] = field(default_factory=dict)
    """What policies that read costs alone choose among all arms at their mean costs."""
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nothing is in flight."""

    def __post_init__(self) -> None:
        self.idle.set()
        self.series = tuple(ArmSeries(self.metrics, arm) for arm in self.pool.arms)

    def __enter__(self) -> Self:
        """Hold one of `limits.in_flight` places.

        Raises:
            OverloadedError: all are taken.
        """
        if self.in_flight >= self.settings.limits.in_flight:
            raise OverloadedError("too many requests in flight (limits.in_flight); try again shortly")
        self.in_flight += 1
        self.idle.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """The same, for `limits.total_s` at the most.

        Raises:
            OverloadedError: all places are taken.
            TotalTimeError: the time is up.
        """
        with self:
            try:
                async with asyncio.timeout(self.settings.limits.total_s):
                    yield
            except TimeoutError as error:
                raise TotalTimeError(self.settings.limits.total_s) from error


def current(scope: MutableMapping[str, Any]) -> State:
    """What serves a request that begins now; it keeps this one to its end, whatever is reloaded meanwhile."""
    state: State = scope["state"]["live"].state
    return state
