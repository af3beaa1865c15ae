"""How many retries there may be: a share of the requests, so that retries cannot bury servers that struggle."""

WINDOW_S = 10
SHARE = 0.1
FLOOR = 10
"""Retries that any window may have, so that a quiet gateway can retry too."""


class RetryBudget:
    """Counts requests and retries of the last `WINDOW_S` seconds. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._second = 0
        self._requests = [0] * WINDOW_S  # by second, modulo the window
        self._retries = [0] * WINDOW_S

    def request(self, now: float) -> None:
        """A request has come."""
        self._requests[self._slot(now)] += 1

    def take(self, now: float) -> bool:
        """Whether there may be one more retry; it counts."""
        slot = self._slot(now)
        if sum(self._retries) >= FLOOR + SHARE * sum(self._requests):
            return False
        self._retries[slot] += 1
        return True

    def _slot(self, now: float) -> int:
        second = int(now)
        if second != self._second:
            for passed in range(max(self._second + 1, second - WINDOW_S + 1), second + 1):
                self._requests[passed % WINDOW_S] = self._retries[passed % WINDOW_S] = 0
            self._second = second
        return second % WINDOW_S
