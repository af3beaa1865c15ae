"""Which prompts are computed next: earliest deadline first, within bounds. Knows no sockets, threads or clock."""

import itertools
import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from probes.engine.base import EngineUnavailableError, Prompt
from probes.engine.pace import Pace

SURE = 0.8
"""A prompt is taken where its scores would be ready in this share of the time left: what is late is wasted, and how
long work takes is known only so well."""
BACKLOG = 2
"""Where so many times as much waits, a micro-batch may hold more: who comes meanwhile would have to wait anyway."""
BACKLOG_TOKENS = 1024
"""But no more than this is computed. Products of so many rows cost a large model on two cores up to a fifth less per
row than those of one prompt; of more rows, no less."""


@dataclass(eq=False)
class Queued:
    """A prompt that is to be computed, for one request or several."""

    prompt: Prompt
    arrived: float
    due: float
    """When the first of its requests must have it."""
    expires: float
    """When the last must."""
    tokens: int = field(init=False)
    number: int = field(init=False)
    """Of arrival."""
    work_s: float = field(init=False)
    given_up: float = field(init=False, default=math.inf)
    """When `expires` was, as it was given up."""

    def __post_init__(self) -> None:
        self.tokens = self.prompt.tokens


Q = TypeVar("Q", bound=Queued)


class PromptQueue(Generic[Q]):
    """Prompts in the order of their deadlines, and of their arrival where these are equal.

    Args:
        max_prompts, max_tokens: what may wait.
    """

    def __init__(self, max_prompts: int, max_tokens: int, pace: Pace) -> None:
        self.pace = pace
        self._max_prompts = max_prompts
        self._max_tokens = max_tokens
        self._order: list[tuple[float, int, Q]] = []
        self._numbers = itertools.count()
        self._tokens = 0
        self._work_s = 0.0
        """Of all that wait, but for the pace's slowdown."""
        self.busy_until = 0.0
        """When the micro-batch that was taken last should be ready."""

    def __len__(self) -> int:
        return len(self._order)

    def admit(self, prompts: Sequence[Prompt], deadline: float, now: float) -> None:
        """Whether there is room, and time, for all of these.

        Raises:
            EngineUnavailableError: there is not.
        """
        tokens = [prompt.tokens for prompt in prompts]
        holds = f"(engine.queue: {self._max_prompts} prompts, {self._max_tokens} tokens)"
        if len(prompts) > self._max_prompts or sum(tokens) > self._max_tokens:
            asked = f"{len(prompts)} prompts with {sum(tokens)} tokens at once"
            raise EngineUnavailableError(f"more than the engine's queue ever holds: {asked} {holds}; raise it")
        waits = f"{len(self._order)} prompts with {self._tokens} tokens wait"
        if len(self._order) + len(prompts) > self._max_prompts or self._tokens + sum(tokens) > self._max_tokens:
            raise EngineUnavailableError(f"the engine's queue is full: {waits} {holds}")
        ahead_s = max(0.0, self.busy_until - now) + self.pace.slowdown * self._work_s
        own_s = self.pace.slowdown * sum(map(self.pace.prompt_s, tokens))
        # An idle engine tries in any case: only so it learns that it has become faster.
        if ahead_s and ahead_s + own_s > SURE * (deadline - now):
            raise EngineUnavailableError(
                f"the engine would not be ready before the deadline (engine.deadline_ms): {waits}, "
                f"about {ahead_s * 1000:.0f} ms"
            )

    def push(self, one: Q) -> None:
        one.number = next(self._numbers)
        one.work_s = self.pace.prompt_s(one.tokens)
        insort(self._order, (one.due, one.number, one))
        self._count(one, 1)

    def hasten(self, one: Q, due: float) -> None:
        """Another request wants it too, sooner."""
        del self._order[self._index(one)]
        one.due = due
        insort(self._order, (due, one.number, one))

    def remove(self, one: Q) -> None:
        """Nobody wants it any more."""
        del self._order[self._index(one)]
        self._count(one, -1)

    def take(self, now: float) -> tuple[list[Q], list[Q]]:
        """The next micro-batch, and those before it that are given up; neither where the queue is empty.

        A prompt is given up that would not be ready in time even alone, for all behind it would wait for nothing. A
        micro-batch takes no prompt that would make its first one late.
        """
        batch: list[Q] = []
        given_up: list[Q] = []
        tokens, ready_by = 0, math.inf
        most = max(self.pace.batch_tokens, min(BACKLOG_TOKENS / self.pace.computed, self._tokens / BACKLOG))
        for _, _, one in self._order:
            ready = self._ready(now, tokens + one.tokens)
            others_wait = len(given_up) + 1 < len(self._order)  # else it is tried: the engine may have become faster
            if one.expires <= now or (not batch and ready > one.expires and others_wait):
                one.given_up = one.expires
                given_up.append(one)
                continue
            if not batch:
                ready_by = now + SURE * (one.due - now)
            elif tokens + one.tokens > most or ready > ready_by:
                break
            batch.append(one)
            tokens += one.tokens
        del self._order[: len(batch) + len(given_up)]
        for one in (*batch, *given_up):
            self._count(one, -1)
        self.busy_until = self._ready(now, tokens) if batch else now
        return batch, given_up

    def _ready(self, now: float, tokens: int) -> float:
        return now + self.pace.slowdown * self.pace.batch_s(tokens)

    def _count(self, one: Q, sign: int) -> None:
        self._tokens += sign * one.tokens
        self._work_s = self._work_s + sign * one.work_s if self._order else 0.0

    def _index(self, one: Q) -> int:
        return bisect_left(self._order, (one.due, one.number))
