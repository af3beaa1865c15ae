"""Writes outcomes as they are posted, and reads back what the gauges of calibration look at; in a thread of its own."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from sqlalchemy.exc import SQLAlchemyError

from server.errors import LedgerAwayError, OverloadedError
from server.ledger.database import Database, explained
from server.ledger.outcome import Outcome, Recorded
from server.ledger.outcomes import Judged, latest, record
from server.sections.outcomes import Outcomes

logger = logging.getLogger(__name__)

MAX_WAITING = 1000
"""Outcomes that are not written yet; further ones are refused."""
MAX_UNKNOWN = 200
"""Outcomes whose decision may still be on its way into the ledger; with so many of them further ones are refused."""
UNKNOWN_S = 1.2
"""So long it may be: a decision is in the ledger within a second."""
RETRY_S = 0.1
FRESH_S = 1.0
"""What the gauges say is no older, if the database answers."""
REFRESH_S = 1.0
"""So long a scrape waits for it."""
CLOSE_S = 5.0


@dataclass
class _Posted:
    outcome: Outcome
    until: float
    """When it is given up, by the monotonic clock."""
    future: "Future[Recorded | None]"


class OutcomeRecorder:
    """
    Args:
        database: the ledger's, which its writer opens.
        arms: (name, probe as name@revision or None).
        on_record: told of each outcome that changes what the ledger says: the arm, and how right.
        flush: has this process's decisions that are on their way into the ledger written now.
        clock: Unix seconds.
    """

    def __init__(
        self,
        database: Database,
        arms: Sequence[tuple[str, str | None]],
        window: Outcomes,
        on_record: Callable[[str, float], None],
        flush: Callable[[], "Future[None]"],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._database = database
        self._flush = flush
        self._arms = arms
        self._window = window
        self._on_record = on_record
        self._clock = clock
        self._waiting: deque[_Posted] = deque()
        self._unknown: list[_Posted] = []
        self._read: dict[str, Judged] = {}
        self._read_at = -FRESH_S
        self._wanted, self._fresh = threading.Event(), threading.Event()
        self._woken, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="outcomes", daemon=True)
        self._thread.start()

    def put(self, outcome: Outcome) -> "Future[Recorded | None]":
        """Have an outcome written. The result comes once it is committed; None where there is no such decision.

        The future raises:
            LedgerAwayError: the database cannot be written.

        Raises:
            OverloadedError: too many wait.
        """
        if len(self._waiting) >= MAX_WAITING or len(self._unknown) >= MAX_UNKNOWN:
            raise OverloadedError("too many outcomes wait to be written; send them more slowly")
        if self._closing.is_set():
            raise LedgerAwayError("the gateway is being stopped")
        posted = _Posted(outcome, time.monotonic() + UNKNOWN_S, Future())
        posted.future.set_running_or_notify_cancel()  # who no longer waits for it does not undo it
        self._waiting.append(posted)
        self._woken.set()
        return posted.future

    @property
    def waiting(self) -> int:
        """How many nobody has begun to write."""
        return len(self._waiting)

    def windows(self) -> dict[str, Judged]:
        """By arm the latest outcomes, as the ledger has them, whichever gateway took them; for a thread that may wait.

        What was last read where the database does not answer.
        """
        if time.monotonic() - self._read_at > FRESH_S:
            self._fresh.clear()
            self._wanted.set()
            self._woken.set()
            self._fresh.wait(REFRESH_S)
        return self._read

    def close(self) -> None:
        """Write what waits, for so long as `CLOSE_S`."""
        self._closing.set()
        self._woken.set()
        self._thread.join(CLOSE_S)
        self._fail([*self._unknown, *self._waiting], LedgerAwayError("the gateway is being stopped"))

    def _run(self) -> None:
        while True:
            self._woken.wait(RETRY_S if self._unknown else None)
            self._woken.clear()
            if self._waiting or self._unknown:
                self._write()
            if self._wanted.is_set():
                self._wanted.clear()
                self._refresh()
            if self._closing.is_set() and not self._waiting:
                return

    def _write(self) -> None:
        seen = len(self._unknown)
        posted = [*self._unknown, *(self._waiting.popleft() for _ in range(len(self._waiting)))]
        try:
            if self._database.vanished():
                raise FileNotFoundError("its file was deleted or replaced")
            with self._database.write() as connection:
                results = record(connection, [one.outcome for one in posted], self._clock())
        except Exception as error:
            self._unknown = []
            if not isinstance(error, SQLAlchemyError | OSError):
                logger.exception("outcomes cannot be written")
                return self._fail(posted, LedgerAwayError("the ledger cannot be written"))
            return self._fail(posted, LedgerAwayError(explained(error, self._database)))
        now = time.monotonic()
        self._unknown = []
        if None in results[seen:]:
            self._flush().add_done_callback(lambda _: self._woken.set())
        for one, result in zip(posted, results, strict=True):
            if result is None and now < one.until:
                self._unknown.append(one)
                continue
            if result is not None and result.changed:
                self._on_record(result.arm, one.outcome.correct)
                self._read_at = -FRESH_S
            one.future.set_result(result)

    def _refresh(self) -> None:
        window = self._window
        try:
            since = self._clock() - window.hours * 3600
            with self._database.read() as connection:
                self._read = {
                    arm: latest(connection, arm, probe, window.window, since) for arm, probe in self._arms
                }  # fmt: skip
        except Exception as error:
            level = logging.DEBUG if isinstance(error, SQLAlchemyError | OSError) else logging.ERROR
            logger.log(level, "outcomes cannot be read", exc_info=True)
        self._read_at = time.monotonic()
        self._fresh.set()

    def _fail(self, posted: Sequence[_Posted], error: LedgerAwayError) -> None:
        for one in posted:
            if not one.future.done():
                one.future.set_exception(error)
