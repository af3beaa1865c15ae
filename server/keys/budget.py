"""USD a day and a month, per key, kept in the ledger's database: reserved before anything is sent, settled afterwards.

One thread writes for all requests of a process: while it commits, others gather, so that one commit serves them all.
Rows are locked while they are read and changed, so budgets hold across workers and machines. A reservation that nobody
settles, for the process was killed, counts in full until its day and month are over. Where the file of the database is
gone, nothing is granted until a reload or a restart: nobody would be told that all budgets have begun anew.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from secrets import token_hex

from sqlalchemy import Connection, event
from sqlalchemy.exc import SQLAlchemyError

from server.errors import BudgetError, BudgetUnavailableError
from server.keys import budget_rows as rows
from server.keys.budget_rows import PERIODS, Row, Sums
from server.keys.file import Period
from server.keys.known import Key
from server.keys.spending import PICO
from server.ledger.database import Database, LedgerError, fault
from server.ledger.jumps import Jumps

logger = logging.getLogger(__name__)

MAX_WAITING = 10_000
"""Reservations that wait to be committed; further ones are refused with 503."""
MAX_UNSETTLED = 100_000
"""Settlements that wait for a database which is away; of further ones the reservations stay as they are."""
MAX_BATCH = 1000
WAIT_S = 10.0
"""Who waits longer for a commit gets 503."""
BACKOFF_S = 1.0
CLOSE_S = 5.0
KEPT_S = 400 * 24 * 3600
"""Budgets of earlier days and months, and reservations that nobody settled."""
TIDY_S = 3600.0
MAX_SUM = 2**62
STALE_S = 2.0
"""What is shown of budgets is so old at the most."""


def begins(period: Period, now: float) -> int:
    """Unix time, by UTC."""
    at = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return int((at if period == "day" else at.replace(day=1)).timestamp())


def ends(period: Period, start: int) -> int:
    """When a period that began then is over."""
    began = datetime.fromtimestamp(start, UTC)
    if period == "day":
        return int((began + timedelta(days=1)).timestamp())
    return int((began + timedelta(days=32)).replace(day=1).timestamp())


@dataclass(frozen=True)
class Claim:
    """One request's reservation."""

    key: str
    limits: Mapping[Period, int]
    """Pico-USD."""
    starts: Mapping[Period, int]
    """Of the day and month that it counts in to its end, whenever that is."""
    id: str = field(default_factory=lambda: token_hex(16))

    @property
    def rows(self) -> list[Row]:
        return [(self.key, period, start) for period, start in self.starts.items()]


@dataclass(frozen=True)
class _Reserve:
    claim: Claim
    pico_usd: int
    future: "asyncio.Future[None]"
    again: bool
    """Whether it may hold something already."""


@dataclass(frozen=True)
class _Settle:
    claim: Claim
    pico_usd: int


class Budgets:
    """
    Args:
        database: the ledger's, for this alone; need not be there yet.
        clock: Unix seconds.
        jumps: of that clock; None: it is looked for here.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time, jumps: Jumps | None = None) -> None:
        self.problem: str | None = None
        """Why nothing can be reserved now."""
        self._database = database
        self._clock = clock
        self._jumps = jumps or Jumps(clock)
        self._reserving: deque[_Reserve] = deque()
        self._settling: deque[_Settle] = deque()
        self._filled, self._closing = threading.Event(), threading.Event()
        self._ready = False
        self._tidied_at = time.monotonic()  # not at once: a clock that is wrong at the start may be corrected
        self._shown: tuple[float, dict[str, float]] = (-STALE_S, {})
        if database.file is not None:
            event.listen(database.engine, "connect", rows.survives_power_cuts)
        self._thread = threading.Thread(target=self._run, name="budgets", daemon=True)
        self._thread.start()

    def claim(self, key: Key) -> Claim:
        """A reservation to be made, in the present day and month."""
        now = self._clock()
        limits = {period: round(usd * PICO) for period, usd in key.budgets_usd.items()}
        return Claim(key.name, limits, {period: begins(period, now) for period in PERIODS})

    async def reserve(self, claim: Claim, pico_usd: int, again: bool = False) -> None:
        """Have the claim hold so much; returns once that is durable.

        Args:
            again: whether it was reserved before, and is to hold this instead.

        Raises:
            BudgetError: the key's budget does not hold it.
            BudgetUnavailableError: the database is away, or too much waits for it.
        """
        if len(self._reserving) >= MAX_WAITING or self._closing.is_set():
            raise BudgetUnavailableError("too many requests wait for their budgets to be checked; ask again shortly")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reserving.append(_Reserve(claim, pico_usd, future, again))
        self._filled.set()
        try:
            async with asyncio.timeout(WAIT_S):
                await future
        except TimeoutError:
            raise BudgetUnavailableError("budgets cannot be checked now: their database does not answer") from None
        finally:
            del future  # what it failed with refers to this frame: they would keep all of the request, and each other

    def settle(self, claim: Claim, pico_usd: int) -> None:
        """It cost so much, instead of what was reserved; waits for nothing."""
        if len(self._settling) >= MAX_UNSETTLED:
            logger.error("a request of key %s is not settled: its reservation counts in full", claim.key)
            return
        self._settling.append(_Settle(claim, pico_usd))
        self._filled.set()

    def spent(self, keys: Iterable[Key]) -> dict[str, dict[Period, float]]:
        """USD spent and reserved, by key and period now; asks the database.

        Raises:
            SQLAlchemyError, LedgerError: it is away.
        """
        self._check_there()
        now = self._clock()
        with self._database.read() as connection:
            sums = rows.since(connection, {begins(period, now) for period in PERIODS})
        return {
            key.name: {period: sums.get((key.name, period, begins(period, now)), 0) / PICO for period in PERIODS}
            for key in keys
        }

    def known(self, keys: Iterable[Key]) -> dict[str, dict[Period, float]]:
        """The same; nothing while the database is away."""
        with suppress(SQLAlchemyError, LedgerError, OSError):
            return self.spent(keys)
        return {}

    def ratios(self, keys: Iterable[Key]) -> dict[str, float]:
        """Share of its budget that a key has used, of day or month the larger; as last known while that is away."""
        at, shown = self._shown
        if time.monotonic() - at < STALE_S:
            return shown
        limited = [key for key in keys if key.budgets_usd]
        spent = self.known(limited)
        if spent:
            shown = {key.name: _ratio(key, spent[key.name]) for key in limited}
        self._shown = time.monotonic(), shown
        return shown

    def close(self) -> None:
        """Settle what has ended, for `CLOSE_S` at the most."""
        self._closing.set()
        self._filled.set()
        self._thread.join(CLOSE_S)
        if self._settling:
            logger.error("%d requests are not settled: their reservations count in full", len(self._settling))
        self._database.close()

    def _run(self) -> None:
        while True:
            self._filled.wait()
            self._filled.clear()  # before we look: what comes from now on sets it again
            while self._reserving or self._settling:
                if not self._round():
                    self._closing.wait(BACKOFF_S)
                    if self._closing.is_set():
                        return
                    self._filled.set()
                    break
            if self._closing.is_set() and not self._filled.is_set():
                return

    def _round(self) -> bool:
        """One transaction; False where the database is away, which leaves the settlements for later."""
        settling = [self._settling.popleft() for _ in range(min(len(self._settling), MAX_BATCH))]
        reserving = [self._reserving.popleft() for _ in range(min(len(self._reserving), MAX_BATCH))]
        reserving = [one for one in reserving if not one.future.done()]  # whose client has left
        try:
            self._check_there()
            if not self._ready:
                self._database.migrate()
                self._ready = True
            with self._database.write() as connection:
                refused = self._transact(connection, settling, reserving)
                self._tidy(connection)
        except Exception as error:
            self._settling.extendleft(reversed(settling))
            self._fail(error, reserving)
            return False
        if self.problem is not None:
            self.problem = None
            logger.warning("budgets are checked again")
        _resolve(reserving, refused)
        return True

    def _check_there(self) -> None:
        """
        Raises:
            LedgerError: it is another file than what was reserved in.
        """
        if self._ready and self._database.vanished():
            raise LedgerError(
                f"the ledger {self._database} was deleted or replaced, and with it what keys have spent: put it back, "
                "or reload or restart the gateway to have all budgets begin anew"
            )

    def _transact(
        self, connection: Connection, settling: Sequence[_Settle], reserving: Sequence[_Reserve]
    ) -> dict[str, BudgetError]:
        """Returns those refused, by claim."""
        claims = [*(one.claim for one in settling), *(one.claim for one in reserving)]
        sums = rows.locked(connection, {row for claim in claims for row in claim.rows})
        before = {row: replace(one) for row, one in sums.items()}
        taken = rows.taken(connection, [one.claim.id for one in settling])
        for done in settling:
            reserved = taken.pop(done.claim.id, None)
            if reserved is None:
                continue  # nothing was reserved, or it is settled already: a commit of ours was taken for failed
            for row in done.claim.rows:
                sums[row].reserved -= reserved
                sums[row].spent = min(sums[row].spent + done.pico_usd, MAX_SUM)
        refused: dict[str, BudgetError] = {}
        granted: list[_Reserve] = []
        held = rows.held(connection, [one.claim.id for one in reserving if one.again])
        now = self._clock()
        for one in reserving:
            more = one.pico_usd - held.get(one.claim.id, 0)
            error = _refusal(one, more, sums, now)
            if error is not None:
                refused[one.claim.id] = error
                continue
            granted.append(one)
            for row in one.claim.rows:
                sums[row].reserved += more
        rows.write(connection, {row: one for row, one in sums.items() if one != before[row]})
        new = [one for one in granted if one.claim.id not in held]
        rows.hold(connection, [(one.claim.id, one.claim.key, one.pico_usd) for one in new], now)
        rows.hold_more(connection, [(one.claim.id, one.pico_usd) for one in granted if one.claim.id in held])
        return refused

    def _tidy(self, connection: Connection) -> None:
        if time.monotonic() - self._tidied_at < TIDY_S:
            return
        self._tidied_at = time.monotonic()
        now = self._jumps.look()
        if now is not None:
            rows.forget(connection, now - KEPT_S)

    def _fail(self, error: Exception, reserving: Sequence[_Reserve]) -> None:
        if self._database.file is None or not self._ready:
            self._database.close()
            self._ready = False
        # Else it stays open: a file that is made once this one is deleted could not be told from it (by its inode).
        problem = fault(error, self._database)
        if problem is None:
            problem = f"budgets cannot be written: {type(error).__name__}"
            logger.exception("budgets cannot be written")
        if self.problem != problem:
            logger.error("requests of keys with budgets are refused: %s", problem)
        self.problem = problem
        away = "budgets cannot be checked now: their database is away; ask again shortly"
        _resolve(reserving, {one.claim.id: BudgetUnavailableError(away) for one in reserving})


def _ratio(key: Key, spent: Mapping[Period, float]) -> float:
    return max(spent[period] / usd for period, usd in key.budgets_usd.items())


def _refusal(one: _Reserve, more: int, sums: Mapping[Row, Sums], now: float) -> BudgetError | None:
    """Why a claim cannot hold so much more; None where it can."""
    over: list[tuple[int, str]] = []
    for period, limit in one.claim.limits.items():
        start = one.claim.starts[period]
        row = sums[one.claim.key, period, start]
        left = limit - row.spent - row.reserved
        if more > left:
            end = ends(period, start)
            until = datetime.fromtimestamp(end, UTC).isoformat().replace("+00:00", "Z")
            over.append((end, f"${max(left, 0) / PICO:.6g} of this key's ${limit / PICO:.6g} a {period} are left"))
            over[-1] = (end, f"{over[-1][1]} until {until}")
    if not over:
        return None
    end, text = max(over)
    return BudgetError(
        f"this request may cost up to ${more / PICO:.6g}, and {text}: lower max_tokens, or wait", end - now
    )


def _resolve(reserving: Sequence[_Reserve], refused: Mapping[str, Exception]) -> None:
    """Tell the requests, on their event loop."""
    if not reserving:
        return

    def tell() -> None:
        for one in reserving:
            if one.future.done():
                continue
            error = refused.get(one.claim.id)
            if error is None:
                one.future.set_result(None)
            else:
                one.future.set_exception(error)

    with suppress(RuntimeError):  # the loop has been closed
        reserving[0].future.get_loop().call_soon_threadsafe(tell)
