"""A time limit that is set anew all the time, and hardly ever expires."""

import asyncio
import select
from collections.abc import Callable
from math import inf

HEARD_S = 0.001
"""A loop that was busy looks at its timers before it reads: what has come by then is heard first."""


class Deadline:
    """The loop's timer is set only where the limit is due before what is set already.

    Args:
        expired: called once when time is up.
    """

    __slots__ = ("_due", "_expired", "_loop", "_timer", "_timer_due")

    def __init__(self, loop: asyncio.AbstractEventLoop, expired: Callable[[], None]) -> None:
        self._loop = loop
        self._expired = expired
        self._due = self._timer_due = inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        """From now on, in the place of any other."""
        self._due = self._loop.time() + seconds
        if self._due < self._timer_due:
            self._set_timer()

    def clear(self) -> None:
        """No limit."""
        self._due = inf

    def close(self) -> None:
        """For good: neither refers it to anything any more, nor anything to it."""
        self._due = inf
        self._expired = _nothing
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_due = self._due
        self._timer = self._loop.call_at(self._due, self._check)

    def _check(self) -> None:
        self._timer, self._timer_due = None, inf
        if self._due == inf:
            return
        if self._loop.time() < self._due:
            self._set_timer()
        else:
            self._timer_due = self._due
            self._timer = self._loop.call_later(HEARD_S, self._expire, self._due)

    def _expire(self, due: float) -> None:
        if self._due != due:  # it has been set or cleared in the meantime
            self._check()
            return
        self._timer, self._due, self._timer_due = None, inf, inf
        self._expired()


def waits_unread(transport: asyncio.Transport) -> bool:
    """Whether something has come that the loop, busy with others, has not read yet; the other side's end counts too."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))


def _nothing() -> None:
    """In the place of what a closed one would have called: that is mostly its owner's, and owner and deadline would
    keep each other until Python looks for garbage."""
