"""`linear_then_rolling_max`: the largest mean of linear readouts over 40 tokens in a row, as in the research code."""

from typing import ClassVar

import numpy as np

from probes.token_readout import Floats, TokenReadout

WINDOW = 40
"""Tokens; a shorter prompt is one window."""


class LinearThenRollingMax(TokenReadout):
    kind: ClassVar[str] = "linear_then_rolling_max"

    @classmethod
    def pool(cls, tokens: Floats) -> tuple[Floats, Floats]:
        logits = tokens[:, :, 0]
        length, probes = logits.shape
        size = min(WINDOW, length)
        sums = np.concatenate([np.zeros((1, probes)), np.cumsum(logits, axis=0, dtype=np.float64)])  # (T + 1, probes)
        means = (sums[size:] - sums[:-size]) / size  # (windows, probes)
        first = means.argmax(axis=0)
        token = np.arange(length)[:, None]
        inside = (first <= token) & (token < first + size)  # (T, probes)
        return means.max(axis=0), (inside / size)[:, :, None]
