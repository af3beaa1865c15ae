"""Which prompts share a forward pass. Imports no torch."""

from collections.abc import Sequence

MICRO_BATCH_TOKENS = 16_384
"""Bounds a forward pass's memory, padding included. A single longer prompt still makes a micro-batch of its own."""
CPU_MICRO_BATCH_TOKENS = 1024
"""On a CPU more run no faster, and fewer stay near the processor."""


def micro_batches(
    lengths: Sequence[int], max_tokens: int = MICRO_BATCH_TOKENS, longest_together: int | None = None
) -> list[list[int]]:
    """Indices of prompts of like length, longest first, each list at most `max_tokens` when padded to its longest.

    Args:
        longest_together: longer prompts are alone.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a batch is its longest, which the others are padded to.
        longest = lengths[batches[-1][0]] if batches else 0
        alone = longest_together is not None and longest > longest_together
        if batches and not alone and (len(batches[-1]) + 1) * longest <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
