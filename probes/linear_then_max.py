"""`linear_then_max`: the largest of all prompt tokens' linear readouts, as in the research code."""

from typing import ClassVar

import numpy as np

from probes.token_readout import Floats, TokenReadout


class LinearThenMax(TokenReadout):
    kind: ClassVar[str] = "linear_then_max"

    @classmethod
    def pool(cls, tokens: Floats) -> tuple[Floats, Floats]:
        logits = tokens[:, :, 0]
        at = logits.argmax(axis=0)[None]  # (1, probes)
        derivative = np.zeros_like(tokens)
        np.put_along_axis(derivative[:, :, 0], at, 1.0, axis=0)
        return np.take_along_axis(logits, at, axis=0)[0], derivative
