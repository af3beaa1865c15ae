"""A breaker per replica: what fails again and again is left alone for a while, then tried with few requests.

Closed, requests pass. It opens after `IN_A_ROW` failures with no success between them, or where at least `SHARE` of the
last minute's exchanges failed, and stays open for a second, then two, four, up to a minute. Half open, one request a
second is let through: a success closes it, a failure opens it again.

A stream is a success with its first byte, and takes that back where it breaks off. Were it one at its end, the failures
of a replica that has just started, or was just tried again, would all be known long before its successes.
"""

IN_A_ROW = 5
SHARE = 0.5
MIN_EXCHANGES = 20
"""A share of fewer exchanges tells nothing."""
HALF_WINDOW_S = 30.0
FIRST_OPEN_S = 1.0
MAX_OPEN_S = 60.0
SETTLED_S = 60.0
"""What stayed closed for so long begins with the shortest opening again."""
PROBE_INTERVAL_S = 1.0


class Breaker:
    """Times are seconds of one monotonic clock.

    An exchange takes its `era` along and gives it back with its result: what began before an opening says nothing of
    the time after it.
    """

    def __init__(self) -> None:
        self.era = 0
        self.open = False
        """Also while half open."""
        self._until = 0.0
        self._open_s = FIRST_OPEN_S
        self._closed_at = 0.0
        self._row = 0
        self._window_began = 0.0
        self._failed = [0, 0]  # in the current half of the window, in the one before
        self._ended = [0, 0]

    def wait_s(self, now: float) -> float:
        """How long no request may pass; 0 where one may."""
        return max(0.0, self._until - now) if self.open else 0.0

    def enter(self, now: float) -> int:
        """A request passes; returns its era."""
        if self.open:
            self._until = now + PROBE_INTERVAL_S
        return self.era

    def succeeded(self, era: int, now: float) -> int:
        """An exchange went well, so far; returns its era from now on, a new one where that closed the breaker."""
        if era != self.era:
            return era
        self._row = 0
        if self.open:
            self.open = False
            self.era += 1
            self._closed_at = now
            self._failed, self._ended = [0, 0], [0, 0]
        self._count(now, ended=1)
        return self.era

    def failed(self, era: int, now: float, *, after_all: bool = False) -> bool:
        """An exchange failed; True where that opened the breaker, for the first time or again.

        Args:
            after_all: it counts as a success already.
        """
        if era != self.era:
            return False
        self._row += not after_all
        if not self.open:
            self._count(now, failed=1, ended=not after_all)
            failed, ended = sum(self._failed), sum(self._ended)
            if self._row < IN_A_ROW and (ended < MIN_EXCHANGES or failed < SHARE * ended):
                return False
            if now - self._closed_at > SETTLED_S:
                self._open_s = FIRST_OPEN_S
        self.open = True
        self.era += 1
        self._until = now + self._open_s
        self._open_s = min(2 * self._open_s, MAX_OPEN_S)
        return True

    def try_now(self, now: float) -> None:
        """There is a sign of recovery: the next request may pass at once."""
        self._until = min(self._until, now)

    def _count(self, now: float, *, ended: int, failed: int = 0) -> None:
        if now - self._window_began >= HALF_WINDOW_S:
            gone = now - self._window_began >= 2 * HALF_WINDOW_S
            self._failed = [0, 0 if gone else self._failed[0]]
            self._ended = [0, 0 if gone else self._ended[0]]
            self._window_began = now
        self._failed[0] += failed
        self._ended[0] += ended
