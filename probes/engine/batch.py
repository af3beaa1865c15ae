"""Which prompts share a forward pass. Imports no torch."""

from collections.abc import Sequence

MICRO_BATCH_TOKENS = 8192
"""Bounds a forward pass's memory, padding included. A single longer prompt still makes a micro-batch of its own."""


def micro_batches(lengths: Sequence[int], max_tokens: int = MICRO_BATCH_TOKENS) -> list[list[int]]:
    """Indices of prompts of like length, longest first, each list at most `max_tokens` when padded to its longest."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The first of a batch is its longest, which the others are padded to.
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padding_tokens(lengths: Sequence[int], max_tokens: int = MICRO_BATCH_TOKENS) -> int:
    """Tokens that `micro_batches` adds to n prompts."""
    padded = sum(len(batch) * lengths[batch[0]] for batch in micro_batches(lengths, max_tokens))
    return padded - sum(lengths)
