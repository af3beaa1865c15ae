"""Requests from many sides, computed in micro-batches by one thread. Satisfies `Engine`; imports no torch.

What arrives while one micro-batch is computed forms the next one: nothing waits while the thread is idle.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from probes.artifact import Artifact
from probes.base import FloatArray, ProbeError
from probes.card import Pass
from probes.engine.base import (
    CHARACTERS_PER_TOKEN,
    CLOSED,
    NOT_FINITE,
    TOO_LATE,
    EngineOptions,
    EngineUnavailableError,
    Prompt,
    Scores,
)
from probes.engine.cache import ScoreCache, key_of
from probes.engine.pace import Pace, measure
from probes.engine.queue import PromptQueue, Queued
from probes.engine.wire import BatchReport, Lookup

logger = logging.getLogger(__name__)

HUNG_S = 60.0
"""A micro-batch that takes longer, and ten times longer than it should, is taken to never end."""


class Computes(Protocol):
    """What `LocalEngine` does, on the thread that calls it."""

    @property
    def passes(self) -> Sequence[Pass]: ...

    @property
    def artifacts(self) -> Sequence[Artifact]: ...

    @property
    def padding_tokens(self) -> int: ...

    def score(self, prompts: Sequence[Prompt], *, partial: bool = False) -> Scores: ...


class HungError(Exception):
    """A micro-batch never ends; its thread cannot be stopped but with its process."""


@dataclass(eq=False, kw_only=True)
class _Waiting(Queued):
    """A prompt that one request or several wait for."""

    key: bytes
    row: asyncio.Future[FloatArray | str]
    """(3, probes), or why there is none."""
    requests: int = 0
    computing: bool = False


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
        self._arrival = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "engine")
        self._computes: Computes
        self._queue: PromptQueue[_Waiting]
        self._task: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Load the probe models, measure how fast they are, and begin to compute.

        Raises:
            ProbeError: a probe model cannot be loaded.
        """
        loop = asyncio.get_running_loop()
        self._computes, pace = await loop.run_in_executor(self._thread, self._start)
        self._queue = PromptQueue(self._options.queue_prompts, self._options.queue_tokens, pace)
        self._task = asyncio.create_task(self._run())

    async def finished(self) -> None:
        """Returns never.

        Raises:
            HungError: see there.
        """
        assert self._task is not None
        await asyncio.shield(self._task)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
        for one in list(self._waiting.values()):
            self._settle(one, CLOSED)
        self._thread.shutdown(wait=False, cancel_futures=True)

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
        if new:
            self._queue.admit(list(new.values()), deadline, now)
        for key in keys:
            self._on_lookup("hit" if key in rows else "miss" if new.pop(key, None) is not None else "shared")
        if unknown:
            joined = [self._join(key, prompt, deadline, now) for key, prompt in unknown.items()]
            try:
                rows |= await _rows(joined, deadline - now)
            finally:
                for one in joined:
                    self._leave(one)
        return Scores(*np.stack([rows[key] for key in keys], axis=1))  # (3, n, probes)

    def _join(self, key: bytes, prompt: Prompt, deadline: float, now: float) -> _Waiting:
        one = self._waiting.get(key)
        if one is None:
            row = asyncio.get_running_loop().create_future()
            one = self._waiting[key] = _Waiting(prompt, now, deadline, deadline, key=key, row=row)
            self._queue.push(one)
            self._arrival.set()
        elif deadline < one.due and not one.computing:
            self._queue.hasten(one, deadline)
        one.expires = max(one.expires, deadline)
        one.requests += 1
        return one

    def _leave(self, one: _Waiting) -> None:
        one.requests -= 1
        if not one.requests and not one.computing and not one.row.done():
            self._queue.remove(one)
            del self._waiting[one.key]

    def _settle(self, one: _Waiting, row: FloatArray | str) -> None:
        del self._waiting[one.key]
        one.row.set_result(row)
        if not isinstance(row, str):
            self._cache.put(one.key, row)

    async def _run(self) -> None:
        """Compute micro-batches until cancelled.

        Raises:
            HungError: see there.
        """
        loop = asyncio.get_running_loop()
        pace = self._queue.pace
        while True:
            await self._arrival.wait()
            now = loop.time()
            batch, expired = self._queue.take(now)
            if not len(self._queue):
                self._arrival.clear()
            for one in expired:
                self._settle(one, TOO_LATE)
            if not batch:
                continue
            for one in batch:
                one.computing = True
            tokens = sum(one.tokens for one in batch)
            limit_s = max(HUNG_S, 10 * pace.slowdown * pace.batch_s(tokens))
            computed = loop.run_in_executor(self._thread, self._compute, [one.prompt for one in batch])
            try:
                async with asyncio.timeout(limit_s):  # wait_for may swallow a cancellation
                    rows, seconds, padding_tokens = await computed
            except TimeoutError as error:
                raise HungError(f"{len(batch)} prompts were computed for more than {limit_s:.0f} s") from error
            pace.observe(tokens, seconds)
            for one, row in zip(batch, rows, strict=True):
                self._settle(one, row)
            self._on_batch(BatchReport(len(batch), tokens, padding_tokens, now - batch[0].arrived))

    # In the thread from here on.

    def _start(self) -> tuple[Computes, Pace]:
        computes = self._load()
        rng = np.random.default_rng(0)
        reads_text = any(artifact.probe.reads == "text" for artifact in computes.artifacts)

        def score(n: int, tokens: int) -> int:
            prompts = [
                Prompt(
                    # Of ids that every vocabulary has; prompts that share no prefix, which might be computed once.
                    tuple(tuple(rng.integers(0, 10, tokens).tolist()) for _ in computes.passes),
                    "a " * (tokens * CHARACTERS_PER_TOKEN // 2) if reads_text else "",
                )
                for _ in range(n)
            ]
            computes.score(prompts, partial=True)
            return sum(prompt.tokens for prompt in prompts)

        return computes, measure(score)

    def _compute(self, prompts: Sequence[Prompt]) -> tuple[list[FloatArray | str], float, int]:
        """Rows, seconds, padding tokens."""
        began, padded = time.perf_counter(), self._computes.padding_tokens
        rows = self._rows(prompts)
        return rows, time.perf_counter() - began, self._computes.padding_tokens - padded

    def _rows(self, prompts: Sequence[Prompt]) -> list[FloatArray | str]:
        try:
            scores = self._computes.score(prompts, partial=True)
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
