"""Answers that are kept for a moment, so that many who look cost no more than one."""

import asyncio
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

THREADS = 2
"""So many answers are made at once; what routes requests needs the processor more."""


@dataclass(eq=False)
class Cache:
    """Of one event loop. Answers are made in threads; who asks for one that is being made waits for it."""

    clock: Callable[[], float] = time.monotonic
    _made: dict[Hashable, "tuple[float, asyncio.Task[Any]]"] = field(default_factory=dict)
    """With the time until which it is kept."""
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(THREADS))

    async def get(self, key: Hashable, keep_s: float, make: Callable[[], T]) -> T:
        """
        Args:
            key: one of few; each is kept for good.
            make: raises what the caller gets; a failure is not kept.
        """
        found = self._made.get(key)
        if found is None or (found[1].done() and (self.clock() >= found[0] or found[1].exception() is not None)):
            found = self._made[key] = (self.clock() + keep_s, asyncio.create_task(self._make(make)))
        answer: T = await asyncio.shield(found[1])  # a client that leaves takes it from nobody else
        return answer

    async def run(self, make: Callable[[], T]) -> T:
        """Make an answer for one alone."""
        return await self._make(make)

    async def _make(self, make: Callable[[], T]) -> T:
        async with self._free:
            return await asyncio.to_thread(make)
