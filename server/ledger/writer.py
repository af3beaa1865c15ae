"""Writes decisions off the hot path: requests leave rows in a bounded queue, a thread commits what is there.

writer = Writer(Database(url), pool)
writer.put(row)                                       # never waits, never raises
future = writer.submit(lambda connection: ...)        # in the same transaction as what was put before it
future = writer.flush()                               # what was put before it is written now
writer.close()

What happens when the database is away: rows wait, then are dropped and counted; `problem` says what is wrong; writing
goes on by itself. Work that was submitted fails at once.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, SQLAlchemyError

from server.ledger import rollups
from server.ledger.database import Database, LedgerError, fault
from server.ledger.insert import insert, pool_id, stands
from server.ledger.jumps import Jumps
from server.ledger.retention import SLICE_ROWS, Keep, give_back, newest_at, tidy
from server.ledger.row import DecisionRow, PoolRow

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_WAITING = 10_000
"""Decisions; further ones are dropped and counted."""
MAX_WAITING_PROMPTS = 1000
"""The same where prompts are kept: each may have 100,000 characters."""
MAX_JOBS = 1000
"""What else waits to be written."""
MAX_BATCH = 2048
"""Rows per transaction."""
GATHER_S = 0.2
"""What comes within this time is committed together. A kill loses no more than this and the write's own time."""
TIDY_S = 60.0
"""How often it is looked for what is too old or too much; at once, where `MAX_BATCH` has been written meanwhile."""
FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.25, 5.0
STALLED_S = 10.0
"""A write that takes longer is told as a problem."""
CLOSE_S = 5.0


@dataclass
class _Job:
    work: Callable[[Connection], Any]
    future: "Future[Any]"
    result: Any = None
    error: Exception | None = None


class Writer:
    """
    Args:
        database: need not be there yet.
        pool: what the decisions are made among.
        on_drop: called for each decision that is lost.
        clock: Unix seconds.
        jumps: of that clock; None: this writer looks by itself.
    """

    def __init__(
        self,
        database: Database,
        pool: PoolRow,
        keep: Keep = Keep(),  # noqa: B008  # frozen
        on_drop: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
        jumps: Jumps | None = None,
    ) -> None:
        self.database = database
        self.pool = pool
        self.opened = threading.Event()
        """Set once the database has been tried, whatever came of it."""
        self._keep = keep
        self._on_drop = on_drop
        self._clock = clock
        self._jumps = jumps or Jumps(clock)
        self._compared = False
        """The clock, with what the ledger said at first."""
        self._waiting: deque[DecisionRow] = deque()
        self._batch: list[DecisionRow] = []
        """Taken from the queue, and not committed yet."""
        self._doubtful = 0
        """So many of its first may be committed all the same: a transaction failed, maybe at its end."""
        self._jobs: deque[_Job] = deque()
        self._filled, self._closing = threading.Event(), threading.Event()
        self._hurried = threading.Event()
        """Set where nothing more is to be gathered."""
        self._problem: str | None = None
        self._busy_since: float | None = None
        self._ready = False
        """Whether the tables are there."""
        self._pool_id: int | None = None
        self._tidy_at = 0.0
        self._untidied = 0
        """Rows and jobs that were written since it was last looked for what is too old or too much."""
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def put(self, row: DecisionRow) -> None:
        """Have a decision written. Neither waits nor raises."""
        if len(self._waiting) >= (MAX_WAITING if row.prompt is None else MAX_WAITING_PROMPTS):
            self._on_drop()
            return
        self._waiting.append(row)
        if not self._filled.is_set():
            self._filled.set()

    def submit(self, work: Callable[[Connection], T]) -> "Future[T]":
        """Run something in the next transaction, after the decisions that were put before it; the result comes once it
        is committed, within a second or so. What it raises is undone alone, and comes as the future's exception.

        The future raises:
            LedgerError: the database is away, or too much waits.
        """
        future: Future[T] = Future()
        if self._closing.is_set() or len(self._jobs) >= MAX_JOBS:
            future.set_exception(LedgerError(self.problem or "too much waits to be written to the ledger"))
            return future
        self._jobs.append(_Job(work, future))
        self._filled.set()
        return future

    def flush(self) -> "Future[None]":
        """Have the decisions that were put before written now, for somebody waits for them; done once they are.

        The future raises:
            LedgerError: as `submit`'s.
        """
        done = self.submit(lambda _: None)
        self._hurried.set()
        return done

    @property
    def problem(self) -> str | None:
        """What keeps decisions from being written; None where nothing does."""
        since = self._busy_since
        if self._problem is None and since is not None and time.monotonic() - since > STALLED_S:
            return f"the ledger {self.database} has not answered for {time.monotonic() - since:.0f} s"
        return self._problem

    @property
    def clock_problem(self) -> str | None:
        """What keeps decisions from being deleted by their age; None where nothing does."""
        return self._jumps.problem

    def close(self, within_s: float = CLOSE_S) -> None:
        """Write what waits, for so long at the most."""
        self._closing.set()
        self._hurried.set()
        self._filled.set()
        self._thread.join(within_s)
        lost = len(self._waiting) + len(self._batch)
        for _ in range(lost):
            self._on_drop()
        if lost:
            logger.error("%d decision records are lost: %s", lost, self.problem or "the ledger was too slow")
        self._fail_jobs(LedgerError("the gateway is being stopped"))
        self.database.close()

    def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        self._round()  # make the tables now, not with the first request
        self.opened.set()
        while True:
            self._filled.wait(TIDY_S)
            self._hurried.wait(GATHER_S)
            self._hurried.clear()
            self._filled.clear()  # before we look: what comes from now on sets it again
            closing = self._closing.is_set()
            if self._round():
                backoff_s = FIRST_BACKOFF_S
                if closing and not self._waiting:
                    return
            elif closing:
                return
            else:
                self._closing.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                self._filled.set()

    def _round(self) -> bool:
        """Write all that waits now; False where the database is away."""
        self._busy_since = time.monotonic()
        try:
            self._open()
            while True:
                for _ in range(min(len(self._waiting), MAX_BATCH - len(self._batch))):
                    self._batch.append(self._waiting.popleft())
                full = len(self._batch) == MAX_BATCH
                if self._batch or self._jobs:
                    self._write()
                self._tidy()
                if not full:
                    break  # what came meanwhile gathers: a transaction costs nearly as much with few rows as with many
                self._busy_since = time.monotonic()
        except Exception as error:
            self._fail(error)
            return False
        finally:
            self._busy_since = None
        if self._problem is not None:
            self._problem = None
            logger.warning("the ledger %s is written again", self.database)
        return True

    def _open(self) -> None:
        if self._ready and self.database.vanished():
            logger.error("the ledger %s was deleted or replaced: a new one is made", self.database)
            self._forget()
        if not self._ready:
            self.database.migrate()
            self._ready = True
        if not self._compared:
            with self.database.read() as connection:
                last = newest_at(connection)
            if last is not None:
                self._jumps.compare(last)
            self._compared = True

    def _forget(self) -> None:
        self.database.close()
        self._ready, self._pool_id = False, None

    def _write(self) -> None:
        """One transaction; what does not fit the database is dropped alone."""
        jobs = [self._jobs.popleft() for _ in range(len(self._jobs))]
        try:
            try:
                if self._doubtful:
                    self._look_up()
                self._transact(self._batch, jobs)
            except Exception as error:
                if not _unfit(error):
                    raise
                self._transact_singly(jobs)
        except BaseException:
            self._jobs.extendleft(reversed(jobs))  # for `_fail`
            raise
        self._untidied += len(self._batch) + len(jobs)
        self._batch.clear()
        for job in jobs:
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)

    def _look_up(self) -> None:
        """Where a commit's answer was lost, but not the commit, leave its rows out: sums would count them twice."""
        last = self._batch[self._doubtful - 1]  # of requests with one id only the last is written
        with self.database.write() as connection, closing(connection.begin_nested()):  # closed, it is undone
            written = stands(connection, last, pool_id(connection, self.pool, self._clock()), self.pool)
        if written:
            del self._batch[: self._doubtful]
        self._doubtful = 0

    def _transact(self, rows: Sequence[DecisionRow], jobs: Sequence[_Job]) -> None:
        self._doubtful = len(rows)
        with self.database.write() as connection:
            if rows:
                self._insert(connection, rows)
            for job in jobs:
                self._do(connection, job)
        self._doubtful = 0

    def _transact_singly(self, jobs: Sequence[_Job]) -> None:
        self._pool_id = None
        while self._batch:
            try:
                self._transact(self._batch[:1], ())
            except Exception as error:
                if not _unfit(error):
                    raise
                self._on_drop()
                logger.error("a decision record does not fit the ledger and is lost: %s", type(error).__name__)
            del self._batch[0]
        self._transact((), jobs)

    def _insert(self, connection: Connection, rows: Sequence[DecisionRow]) -> None:
        if self._pool_id is None:
            self._pool_id = pool_id(connection, self.pool, self._clock())
        insert(connection, rows, self._pool_id, self.pool)
        rollups.add(connection, rollups.sums_of(rows, self._pool_id, self.pool))

    def _do(self, connection: Connection, job: _Job) -> None:
        try:
            with connection.begin_nested():
                job.result = job.work(connection)
        except Exception as error:
            if isinstance(error, DBAPIError) and not _unfit(error):
                raise
            job.error = error

    def _tidy(self) -> None:
        """Where there is so much to delete, more goes than came since the last time: in slices, each its own
        transaction."""
        now = time.monotonic()
        if now < self._tidy_at and self._untidied < MAX_BATCH:
            return
        for _ in range(1 + self._untidied // SLICE_ROWS):
            with self.database.write() as connection:
                more = tidy(connection, self._keep, self._jumps.look())
            if not more:
                break
        with self.database.write() as connection:
            more = give_back(connection) or more
        self._untidied = 0
        self._tidy_at = now if more else now + TIDY_S
        if more:
            self._filled.set()

    def _fail(self, error: Exception) -> None:
        self._forget()
        problem = fault(error, self.database)
        if problem is None:
            problem = f"the ledger {self.database} cannot be written: {type(error).__name__}"
            logger.exception("the ledger's writer failed")
        if self._problem != problem:
            logger.error("decisions are not recorded: %s", problem)
        self._problem = problem
        self._fail_jobs(LedgerError(problem))

    def _fail_jobs(self, error: LedgerError) -> None:
        while self._jobs:
            self._jobs.popleft().future.set_exception(error)


def _unfit(error: Exception) -> bool:
    """Whether a value is wrong, rather than the database."""
    return isinstance(error, DataError | IntegrityError) or not isinstance(
        error, SQLAlchemyError | OSError | LedgerError
    )
