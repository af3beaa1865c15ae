"""Which prompts share a forward pass. Imports no torch."""

from collections.abc import Sequence

MICRO_BATCH_TOKENS = 16_384
"""Bounds a forward pass's memory, padding included. A single longer prompt still makes a micro-batch of its own."""
CPU_MICRO_BATCH_TOKENS = 2048
"""On a CPU more run hardly faster, and fewer stay near the processor."""


def micro_batches(
    lengths: Sequence[int],
    max_tokens: int = MICRO_BATCH_TOKENS,
    longest_together: int | None = None,
    counts: Sequence[int] | None = None,
) -> list[list[int]]:
    """Indices of prompts of like length, longest first, each list at most `max_tokens`.

    Args:
        longest_together: longer prompts are alone.
        counts: tokens that each counts; None: as many as the longest beside it, for it is padded.
    """
    batches: list[list[int]] = []
    longest = tokens = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        counted = longest if counts is None else counts[index]
        alone = longest_together is not None and longest > longest_together
        if batches and not alone and tokens + counted <= max_tokens:
            batches[-1].append(index)
            tokens += counted
        else:
            batches.append([index])
            longest = lengths[index]
            tokens = longest if counts is None else counted
    return batches
