"""Memory of the engine's process over many prompts."""

from collections.abc import Callable

from offline.bench.scoring_load import resident_mb, running, throughput
from offline.bench.scoring_model import Model, prompts

CHUNK = 2_000
WARM = 50_000
"""Prompts after which memory should grow no more."""


async def soak(model: Model, n: int, seed: int, on_step: Callable[[float], None] = lambda n: None) -> dict[str, float]:
    """Score n different prompts.

    Returns: memory after the first `WARM` of them (or a quarter, if that is less) and at its largest after that, in MB;
        and the growth between, as a share.
    """
    warm = min(WARM, n // 4)
    settled = largest = 0.0
    async with running(model) as at:
        done = 0
        while done < n:
            some = prompts(model, min(CHUNK, n - done), seed=seed + done)
            await throughput(at, some)
            done += len(some)
            on_step(len(some))
            memory = resident_mb(at.engine)
            if done <= max(warm, CHUNK):
                settled = max(settled, memory)
            largest = max(largest, memory)
    return {
        "prompts": n,
        "settled_mb": round(settled, 1),
        "largest_mb": round(largest, 1),
        "growth": round(largest / settled - 1, 4),
    }
