"""What the page asks of the ledger, made in threads and kept for a moment."""

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection

from server.dashboard.cache import Cache
from server.dashboard.money import Totals
from server.dashboard.period import Period
from server.dashboard.recent import Line, read_one, read_page
from server.dashboard.sample import Sample, read_sample
from server.dashboard.totals import Mix, read_mix, read_totals
from server.dashboard.truth import Drift, Reliability, drift, read_reliability
from server.dashboard.whatif import Frontier, Point, best_single, frontier, what_if
from server.errors import LedgerAwayError
from server.ledger.database import Database, LedgerError
from server.ledger.reader import reading

T = TypeVar("T")

FRESH_S = 2.0
SAMPLE_S = 5.0
"""So long a sample of decisions is kept, and what was replayed on it."""


@dataclass(frozen=True)
class Figures:
    """
    Args:
        names: the pool's arms.

    Everything raises LedgerAwayError where the database cannot be read.
    """

    database: Database
    cache: Cache
    names: list[str]

    async def totals(self, period: Period) -> Totals:
        """Money, accuracy and requests."""
        return await self._kept(
            ("totals", period.name), FRESH_S, lambda it: read_totals(it, period, time.time(), self.names)
        )

    async def mix(self, period: Period) -> Mix:
        """Requests per arm over time."""
        return await self._kept(("mix", period.name), FRESH_S, lambda it: read_mix(it, period, time.time(), self.names))

    async def best(self, period: Period) -> Point | None:
        """The arm alone that is expected to be right most often; None where nobody can tell."""
        return await self._replayed("best", period, best_single)

    async def frontier(self, period: Period) -> Frontier:
        """Cost and accuracy of other lambdas and of each arm alone."""
        return await self._replayed("frontier", period, frontier)

    async def replay(self, period: Period, lam: float) -> Point | None:
        """One lambda; None where there is nothing to replay."""
        sample = await self._sample(period)
        return await self.cache.run(partial(what_if, sample, lam))

    async def reliability(self, period: Period) -> list[Reliability]:
        """Outcomes against success probabilities."""
        return await self._kept(
            ("reliability", period.name), SAMPLE_S, lambda it: read_reliability(it, period.since(time.time()))
        )

    async def drift(self, period: Period) -> Drift:
        """How unlike the probes' training the prompts were, over time."""
        return await self._replayed("drift", period, lambda sample: drift(sample, period, time.time()))

    async def page(self, limit: int, before: int | None) -> tuple[list[Line], int | None]:
        """The last decisions; see `read_page`."""
        if before is None:
            return await self._kept(("page", limit), FRESH_S / 2, lambda it: read_page(it, limit, None))
        return await self.cache.run(partial(self._read, lambda it: read_page(it, limit, before)))

    async def decision(self, id_: int) -> dict[str, Any] | None:
        """One in full; None where it is not there."""
        return await self.cache.run(partial(self._read, lambda it: read_one(it, id_)))

    async def _sample(self, period: Period) -> Sample:
        return await self._kept(
            ("sample", period.name), SAMPLE_S, lambda it: read_sample(it, period.since(time.time()))
        )

    async def _replayed(self, what: str, period: Period, make: Callable[[Sample], T]) -> T:
        sample = await self._sample(period)
        return await self.cache.get((what, period.name), SAMPLE_S, partial(make, sample))

    async def _kept(self, key: Hashable, keep_s: float, query: Callable[[Connection], T]) -> T:
        return await self.cache.get(key, keep_s, partial(self._read, query))

    def _read(self, query: Callable[[Connection], T]) -> T:
        try:
            with reading(self.database) as connection:
                return query(connection)
        except LedgerError as error:
            raise LedgerAwayError(str(error)) from error
