"""All parts of one running gateway, built once in `app.py` and handed to every request."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

from probes.engine.base import Engine
from server.config import Settings
from server.errors import OverloadedError
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

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of `limits.in_flight` places.

        Raises:
            OverloadedError: all are taken.
        """
        if self.in_flight >= self.settings.limits.in_flight:
            raise OverloadedError("too many requests in flight (limits.in_flight); try again shortly")
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
