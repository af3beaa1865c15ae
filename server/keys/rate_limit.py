"""Requests and tokens a minute, per key: token buckets that all workers of a machine share.

A bucket holds a minute's worth and fills at that rate. Of each is kept only when it will be full again, on the
monotonic clock, which all processes share and which does not jump: a bucket that is full needs no memory.
"""

import fcntl
import math
import mmap
import os
import struct
import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from server.http.head import Lines

MINUTE_S = 60.0
MAX_DEBT_S = 24 * 3600.0
"""Whatever an upstream says that it used, a key is free again after so long."""
ROUNDING_S = 1e-6
UNKNOWN = -1.0
SLOT = struct.Struct("=16sdd")
"""Whose it is; when the bucket of requests is full again, and that of tokens."""
SLOTS = 2**16
EMPTY = bytes(16)

Kind = Literal["requests", "tokens"]
PLACES: dict[Kind, int] = {"requests": 2, "tokens": 3}
"""Of the buckets in a slot, counted in numbers of 8 bytes."""
NUMBER_BYTES = 8
STANDING = "x-ratelimit-limit-{0}: %d\r\nx-ratelimit-remaining-{0}: %d\r\nx-ratelimit-reset-{0}: %b\r\n"
LINES: dict[Kind, bytes] = {kind: STANDING.format(kind).encode() for kind in PLACES}


class Buckets:
    """The buckets of all keys, in a file that several processes map, or in memory.

    Args:
        file: made where there is none; None: this process is the only one.
        clock: seconds that only go forward.
    """

    def __init__(self, file: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._file: int | None = None
        self._slots: dict[bytes, int] = {}
        """Where in `_numbers` a key's slot was last."""
        size = SLOTS * SLOT.size
        if file is None:
            self._memory: bytearray | mmap.mmap = bytearray(size)
        else:
            self._file = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
            os.ftruncate(self._file, size)
            self._memory = mmap.mmap(self._file, size)
        self._numbers = memoryview(self._memory).cast("d")
        """The same memory as numbers, which are read and written in one go."""

    def close(self) -> None:
        self._numbers.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
        if self._file is not None:
            os.close(self._file)

    def take(self, owner: bytes, kind: Kind, cost_s: float) -> float:
        """Take so many seconds' worth where they are there.

        Returns:
            Seconds until the bucket is full again, what was taken included; more than a minute where it was not.
        """
        clock, numbers = self.clock, self._numbers
        now = clock()
        at = self._lock(owner, now) + PLACES[kind]
        try:
            full_at = numbers[at]
            after = (full_at if full_at > now else now) + cost_s
            ahead_s = after - now
            if ahead_s > MINUTE_S + ROUNDING_S:
                return ahead_s
            numbers[at] = after
            return ahead_s if ahead_s < MINUTE_S else MINUTE_S
        finally:
            if self._file is not None:
                self._unlock()

    def correct(self, owner: bytes, kind: Kind, cost_s: float) -> None:
        """Take more, whether it is there or not, or give back (less than 0)."""
        clock, numbers = self.clock, self._numbers
        now = clock()
        at = self._lock(owner, now) + PLACES[kind]
        try:
            full_at = numbers[at]
            after = (full_at if full_at > now else now) + cost_s
            latest = now + MAX_DEBT_S
            numbers[at] = after if after < latest else latest
        finally:
            if self._file is not None:
                self._unlock()

    def ahead_s(self, owner: bytes, kind: Kind) -> float:
        """Seconds until the bucket is full again."""
        now = self.clock()
        at = self._lock(owner, now) + PLACES[kind]
        try:
            return max(0.0, self._numbers[at] - now)
        finally:
            if self._file is not None:
                self._unlock()

    def _lock(self, owner: bytes, now: float) -> int:
        """Until `_unlock` no other process reads or writes; returns where in `_numbers` the owner's slot is.

        The kernel unlocks for whoever is killed. One process alone needs no lock: it has no second thread here, and
        nobody else gives its slots away.
        """
        at = self._slots.get(owner, -1)
        if self._file is not None:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if at >= 0 and self._memory[at * NUMBER_BYTES : at * NUMBER_BYTES + 16] != owner:
                at = -1
        if at < 0:
            at = self._slots[owner] = self._find(owner, now) // NUMBER_BYTES
        return at

    def _unlock(self) -> None:
        assert self._file is not None
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def _find(self, owner: bytes, now: float) -> int:
        """The owner's slot, else an unused one, else one whose buckets are full, so that nothing is forgotten."""
        first = int.from_bytes(owner[:4], "little") % SLOTS
        free = -1
        for i in range(SLOTS):
            at = (first + i) % SLOTS * SLOT.size
            whose, requests_at, tokens_at = SLOT.unpack_from(self._memory, at)
            if whose == owner:
                return at
            if free < 0 and requests_at <= now and tokens_at <= now:
                free = at
            if whose == EMPTY:
                break
        assert free >= 0, "there are more slots than keys"
        self._slots.pop(bytes(self._memory[free : free + 16]), None)
        SLOT.pack_into(self._memory, free, owner, 0.0, 0.0)
        return free


def owner_of(name: str) -> bytes:
    """By what a key's buckets are found."""
    return blake2b(name.encode(), digest_size=16).digest()


class Meter:
    """One request against its key's limits.

    Args:
        requests, tokens: a minute; None: as many as come.
    """

    __slots__ = ("_buckets", "_charged", "_owner", "_requests", "_requests_ahead", "_tokens", "_tokens_ahead")

    def __init__(self, buckets: Buckets, owner: bytes, requests: int | None, tokens: int | None) -> None:
        self._buckets = buckets
        self._owner = owner
        self._requests, self._tokens = requests, tokens
        self._requests_ahead = self._tokens_ahead = UNKNOWN
        """Seconds until the bucket is full again, as this request found it."""
        self._charged = 0

    def take(self, kind: Kind, amount: int) -> float:
        """Take it from the bucket where there is so much.

        Returns:
            0, or the seconds until there will be.
        """
        limit = self._requests if kind == "requests" else self._tokens
        if limit is None:
            return 0.0
        if amount > limit:  # what is more than a full bucket has to wait for a full one
            amount = limit
        cost_s = amount * MINUTE_S / limit
        ahead_s = self._buckets.take(self._owner, kind, cost_s)
        refused = ahead_s > MINUTE_S
        known = min(ahead_s - cost_s, MINUTE_S) if refused else ahead_s
        if kind == "requests":
            self._requests_ahead = known
        else:
            self._tokens_ahead = known
            self._charged = 0 if refused else amount
        return ahead_s - MINUTE_S if refused else 0.0

    def settle(self, tokens: int) -> None:
        """So many tokens were used in the end."""
        if self._tokens is not None and self._charged != tokens and self._tokens_ahead != UNKNOWN:
            self._buckets.correct(self._owner, "tokens", (tokens - self._charged) * MINUTE_S / self._tokens)
            self._charged = tokens

    def lines(self) -> Lines:
        """OpenAI's `x-ratelimit-*` headers, as this request found it."""
        lines = b""
        if self._requests is not None:
            lines += self._standing("requests", self._requests, self._requests_ahead)
        if self._tokens is not None:
            lines += self._standing("tokens", self._tokens, self._tokens_ahead)
        return lines

    def _standing(self, kind: Kind, limit: int, ahead_s: float) -> Lines:
        """The limit, what is left, and in what time all of it will be."""
        if ahead_s == UNKNOWN:
            ahead_s = min(self._buckets.ahead_s(self._owner, kind), MINUTE_S)
        left = (MINUTE_S - ahead_s) * limit / MINUTE_S + ROUNDING_S
        return LINES[kind] % (limit, left, duration(ahead_s))


def duration(seconds: float) -> bytes:
    """As OpenAI writes it: 12ms, 1.5s, 1m0s."""
    if seconds < 1:
        return b"%dms" % math.ceil(seconds * 1e3)
    minutes, rest = divmod(round(seconds, 3), 60)
    text = f"{rest:.3f}".rstrip("0").rstrip(".")
    return f"{int(minutes)}m{text}s".encode() if minutes else f"{text}s".encode()
