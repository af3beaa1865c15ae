"""How fast this machine computes: what a micro-batch may hold, and when a prompt would be ready."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from probes.engine.batch import MICRO_BATCH_TOKENS

BATCH_S = 0.025
"""What a micro-batch's tokens may take, so that a more urgent prompt which comes in the meantime waits little. A prompt
that takes longer is computed alone, unless much waits (`BACKLOG` in `queue.py`): beside others it
would not be ready sooner, and they later."""

WARM_UP_TOKENS = 64
LONG_ENOUGH_S = 0.05
MOST_TOKENS = 4096
ADAPTS_BY = 0.2
ADAPTS_COMPUTED_BY = 0.5
"""What is reused is counted, not measured: it has no noise but the prompts' own."""
LEAST, MOST = 0.1, 100.0


@dataclass
class Pace:
    """A micro-batch of n tokens takes about `slowdown * (fixed_s + n * token_s)` seconds."""

    fixed_s: float
    """What a forward pass takes however few its tokens."""
    token_s: float
    slowdown: float = 1.0
    """Of late, beside when it was measured: other processes take from the same cores."""
    computed: float = 1.0
    """Share of prompts' tokens that were computed of late; earlier prompts began with the others."""

    @property
    def batch_tokens(self) -> int:
        """Of a micro-batch, reused ones included: `BATCH_S` of work, or as much as a pass costs anyway, which nearly
        halves its price. When a prompt would be ready, in contrast, is told as if none of its tokens were reused."""
        faster = min(1.0, self.slowdown)  # than when it was measured, on a busy machine say
        tokens = max(BATCH_S / faster, self.fixed_s) / (self.token_s * self.computed)
        return max(1, min(MICRO_BATCH_TOKENS, round(tokens)))

    def batch_s(self, tokens: int) -> float:
        """Seconds that a micro-batch takes, but for `slowdown`."""
        return self.fixed_s + tokens * self.token_s

    def prompt_s(self, tokens: int) -> float:
        """Seconds that one prompt adds to a busy engine's work, but for `slowdown`: its tokens, and its share of a
        micro-batch's fixed costs."""
        return min(1.0, tokens / self.batch_tokens) * self.fixed_s + tokens * self.token_s

    def observe(self, tokens: int, seconds: float, reused: int = 0) -> None:
        """Learn from a computed micro-batch.

        Args:
            tokens: that were computed, beside the reused ones.
        """
        tokens = max(1, tokens)  # of a short text none counts
        ratio = seconds / self.batch_s(tokens)
        self.slowdown += ADAPTS_BY * (min(MOST, max(LEAST, ratio)) - self.slowdown)
        self.computed += ADAPTS_COMPUTED_BY * (tokens / (tokens + reused) - self.computed)


def measure(compute: Callable[[int, int], int], clock: Callable[[], float] = time.perf_counter) -> Pace:
    """Time passes of one token and of more and more prompts, until one takes long enough to tell.

    Args:
        compute: scores n prompts of so many tokens each, and says how many tokens count in all.
    """

    def best(n: int, tokens: int, times: int) -> tuple[float, int]:
        taken = []
        for _ in range(times):
            began = clock()
            counted = compute(n, tokens)
            taken.append(clock() - began)
        return min(taken), counted

    compute(1, WARM_UP_TOKENS)  # the first pass is slow
    one_s, one = best(1, 1, times=3)
    n, seconds, counted = 1, 0.0, 0
    while seconds < LONG_ENOUGH_S and counted < MOST_TOKENS:
        seconds, counted = best(n, WARM_UP_TOKENS, times=2)
        n *= 2
    # At least a tenth of the time is the tokens', however the clock jitters.
    token_s = max((seconds - one_s) / max(1, counted - one), seconds / 10 / counted)
    return Pace(max(0.0, one_s - one * token_s), token_s)
