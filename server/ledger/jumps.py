"""Whether the clock says how old something is: for a day after it jumped, it is not asked."""

import logging
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)

JUMP_S = 3600.0
"""Smaller steps hurt nobody: rows are kept for days."""
DOUBT_S = 24 * 3600.0
"""So long nothing is deleted by its age."""
OFF_S = 24 * 3600.0
"""If the ledger's last decision is older at the start, the gateway was off or the clock is ahead: nobody can tell."""
CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""One that nobody sets; where there is the first, it goes on while a machine sleeps."""


class Jumps:
    """Compares the clock with one that nobody sets. One for all of a process, over reloads too.

    Args:
        wall: Unix seconds.
        steady: seconds that only go on.
    """

    def __init__(
        self,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = lambda: time.clock_gettime(CLOCK),
    ) -> None:
        self._wall = wall
        self._steady = steady
        self._ahead_s = wall() - steady()
        self._doubted_until: float | None = None
        self._said: str | None = None

    def look(self) -> float | None:
        """Unix seconds; None where they are in doubt."""
        now, steady = self._wall(), self._steady()
        jumped_s = now - steady - self._ahead_s
        self._ahead_s = now - steady
        if abs(jumped_s) > JUMP_S:
            self._said = f"the clock jumped by {_days(jumped_s)}: nothing is deleted by its age for a day"
            self._doubted_until = steady + DOUBT_S
            logger.warning("ledger: %s", self._said)
        if self._doubted_until is not None and steady >= self._doubted_until:
            self._doubted_until = self._said = None
        return now if self._doubted_until is None else None

    def compare(self, last: float) -> None:
        """Doubt a clock at the start that is far beyond what the ledger wrote last, in Unix seconds."""
        off_s = self._wall() - last
        if off_s > OFF_S:
            self._doubted_until = self._steady() + DOUBT_S
            logger.info(
                "ledger: by the clock its last decision is %s old; lest the clock be ahead, nothing is deleted by its "
                "age for a day",
                _days(off_s),
            )

    @property
    def problem(self) -> str | None:
        """What became of the clock while the gateway ran, and what comes of that."""
        return self._said


def _days(seconds: float) -> str:
    return f"{seconds / 86400:.3g} days"
