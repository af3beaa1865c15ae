"""Requests from many sides, computed in micro-batches by one thread. Satisfies `Engine`; imports no torch.

What arrives while one micro-batch is computed forms the next one: nothing waits while the thread is idle, and the
thread waits for nobody: it takes the next micro-batch itself, while the event loop still answers for the last one.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.base import FloatArray, ProbeError
from probes.engine.base import (
    CLOSED,
    NOT_FINITE,
    TOO_LATE,
    BrokenEngineError,
    EngineOptions,
    EngineUnavailableError,
    Prompt,
    Scores,
)
from probes.engine.cache import ScoreCache, key_of
from probes.engine.computes import Computes, pace_of
from probes.engine.queue import PromptQueue, Queued
from probes.engine.wire import BatchReport, Lookup

logger = logging.getLogger(__name__)

HUNG_S = 60.0
"""A micro-batch that takes longer, and ten times longer than it should, is taken to never end."""
LOOK_S = 1.0
"""How often that is looked at."""


@dataclass(eq=False, kw_only=True)
class _Waiting(Queued):
    """A prompt that one request or several wait for."""

    key: bytes
    row: asyncio.Future[FloatArray | str]
    """(3, probes), or why there is none."""
    requests: int = 0
    taken: bool = False
    """From the queue."""


class BatchingEngine:
    """
    Args:
        load: makes what computes; called in the thread that will.
        on_batch: called after each micro-batch.
        on_lookup: called for each prompt that is taken.
    """

    def __init__(
        self,
        load: Callable[[], Computes],
        options: EngineOptions,
        *,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        on_lookup: Callable[[Lookup], None] = lambda found: None,
    ) -> None:
        self._load = load
        self._options = options
        self._on_batch = on_batch
        self._on_lookup = on_lookup
        self._cache = ScoreCache(options.cache_prompts)
        self._waiting: dict[bytes, _Waiting] = {}
        self._change = threading.Condition()
        """Guards the queue, its pace and what has been taken from it; tells the thread of prompts, and of the end."""
        self._closing = False
        self._computes: Computes
        self._queue: PromptQueue[_Waiting]
        self._overdue = math.inf
        """When the micro-batch that is computed should have ended long ago."""
        self._loop: asyncio.AbstractEventLoop
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Load the probe models, measure how fast they are, and begin to compute.

        Raises:
            ProbeError: a probe model cannot be loaded.
        """
        self._loop = asyncio.get_running_loop()
        started, ended = self._loop.create_future(), self._loop.create_future()
        threading.Thread(target=self._work, args=(started, ended), name="engine").start()
        try:
            await started
        except asyncio.CancelledError:
            await self.close()
            raise
        self._task = asyncio.create_task(self._watch(ended))

    async def finished(self) -> None:
        """Returns only if the thread ends.

        Raises:
            BrokenEngineError: see there.
        """
        assert self._task is not None
        await asyncio.shield(self._task)

    async def close(self) -> None:
        """The thread ends after the micro-batch that it computes."""
        with self._change:
            self._closing = True
            self._change.notify()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        for one in list(self._waiting.values()):
            self._settle(one, CLOSED)

    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """See `Engine.score`; at least one prompt."""
        if not self.ready:
            raise EngineUnavailableError(CLOSED)
        now = asyncio.get_running_loop().time()
        if deadline <= now:
            raise EngineUnavailableError(TOO_LATE)
        keys = [key_of(prompt) for prompt in prompts]
        rows = {key: row for key in keys if (row := self._cache.get(key)) is not None}
        unknown = {key: prompt for key, prompt in zip(keys, prompts, strict=True) if key not in rows}
        new = {key: prompt for key, prompt in unknown.items() if key not in self._waiting}
        joined = []
        if unknown:
            with self._change:
                if new:
                    self._queue.admit(list(new.values()), deadline, now)
                joined = [self._join(key, prompt, deadline, now) for key, prompt in unknown.items()]
                self._change.notify()
        for key in keys:
            self._on_lookup("hit" if key in rows else "miss" if new.pop(key, None) is not None else "shared")
        if joined:
            try:
                rows |= await _rows(joined, deadline - now)
            finally:
                for one in joined:
                    self._leave(one)
        return Scores(*np.stack([rows[key] for key in keys], axis=1))  # (3, n, probes)

    def _join(self, key: bytes, prompt: Prompt, deadline: float, now: float) -> _Waiting:
        one = self._waiting.get(key)
        if one is None:
            one = self._waiting[key] = _Waiting(
                prompt, now, deadline, deadline, key=key, row=self._loop.create_future()
            )
            self._queue.push(one)
        elif deadline < one.due and not one.taken:
            self._queue.hasten(one, deadline)
        one.expires = max(one.expires, deadline)
        one.requests += 1
        return one

    def _leave(self, one: _Waiting) -> None:
        one.requests -= 1
        if not one.requests and not one.row.done():
            with self._change:
                if not one.taken:
                    self._queue.remove(one)
                    del self._waiting[one.key]

    def _settle(self, one: _Waiting, row: FloatArray | str) -> None:
        if one.row.done():  # closed in the meantime
            return
        del self._waiting[one.key]
        one.row.set_result(row)
        if not isinstance(row, str):
            self._cache.put(one.key, row)

    def _computed(self, batch: Sequence[_Waiting], rows: Sequence[FloatArray | str], report: BatchReport) -> None:
        for one, row in zip(batch, rows, strict=True):
            self._settle(one, row)
        self._on_batch(report)

    def _given_up(self, late: Sequence[_Waiting]) -> None:
        for one in late:
            if one.requests and one.expires > one.given_up:  # somebody with more time has joined
                with self._change:
                    one.taken = False
                    self._queue.push(one)
                    self._change.notify()
            else:
                self._settle(one, TOO_LATE)

    async def _watch(self, ended: asyncio.Future[None]) -> None:
        """Until the thread ends; raises what ends it, or that nothing does."""
        while not (await asyncio.wait([ended], timeout=min(LOOK_S, HUNG_S)))[0]:
            if time.monotonic() > self._overdue:
                raise BrokenEngineError("a micro-batch was computed for more than ten times as long as it should take")
        ended.result()

    # In the thread from here on.

    def _work(self, started: asyncio.Future[None], ended: asyncio.Future[None]) -> None:
        try:
            self._computes = self._load()
            pace = pace_of(self._computes)
            self._queue = PromptQueue(self._options.queue_prompts, self._options.queue_tokens, pace)
        except Exception as error:
            self._tell(_end, started, error)
            return
        self._tell(_end, started, None)
        try:
            while batch := self._take():
                self._compute(batch)
        except Exception as error:
            self._tell(_end, ended, error)
        else:
            self._tell(_end, ended, None)

    def _compute(self, batch: Sequence[_Waiting]) -> None:
        taken, padded, saved = time.monotonic(), self._computes.padding_tokens, self._computes.reused_tokens
        rows = self._rows([one.prompt for one in batch])
        tokens, padding = sum(one.tokens for one in batch), self._computes.padding_tokens - padded
        # Where a pass has failed and is repeated, both count.
        reused = min(tokens, max(0, self._computes.reused_tokens - saved))
        with self._change:
            self._queue.pace.observe(tokens - reused, time.monotonic() - taken, reused)
            self._overdue = math.inf
        waited_s = taken - min(one.arrived for one in batch)
        report = BatchReport(len(batch), tokens - reused, padding, reused, waited_s)
        self._tell(self._computed, batch, rows, report)

    def _take(self) -> list[_Waiting]:
        """The next micro-batch, as soon as there is one; none at the end."""
        with self._change:
            while not self._closing:
                now = time.monotonic()  # as the loop's, which stands still while the loop sleeps
                batch, given_up = self._queue.take(now)
                for one in (*batch, *given_up):
                    one.taken = True
                if given_up:
                    self._tell(self._given_up, given_up)
                if batch:
                    self._overdue = now + max(HUNG_S, 10 * (self._queue.busy_until - now))
                    return batch
                if not len(self._queue):
                    self._change.wait()
        return []

    def _tell(self, what: Callable[..., object], *arguments: Any) -> None:
        """Have the event loop do it."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(what, *arguments)

    def _rows(self, prompts: Sequence[Prompt]) -> list[FloatArray | str]:
        try:
            scores = self._computes.score(prompts, partial=True)
        except BrokenEngineError:
            raise
        except Exception as error:
            if len(prompts) > 1:  # only who is at fault shall fail
                return [row for prompt in prompts for row in self._rows([prompt])]
            if isinstance(error, ProbeError):
                return [f"the engine refuses this prompt: {error}"]
            logger.exception("a prompt failed")
            return [f"the engine failed on this prompt: {type(error).__name__}: {error}"]
        fields = (scores.success, scores.output_tokens, scores.activation_percentile)
        rows = np.stack(fields, axis=1)  # (n, 3, probes)
        return [row.copy() if np.isfinite(row[0]).all() else NOT_FINITE for row in rows]


def _end(started: asyncio.Future[None], error: Exception | None) -> None:
    if started.done():  # whoever waited has been cancelled
        return
    if error is None:
        started.set_result(None)
    else:
        started.set_exception(error)


async def _rows(joined: Sequence[_Waiting], seconds: float) -> dict[bytes, FloatArray]:
    """
    Raises:
        EngineUnavailableError: one of them was not scored in time.
    """
    await asyncio.wait([one.row for one in joined], timeout=None if math.isinf(seconds) else seconds)
    rows = {}
    for one in joined:
        row = one.row.result() if one.row.done() else TOO_LATE
        if isinstance(row, str):
            raise EngineUnavailableError(row)
        rows[one.key] = row
    return rows
