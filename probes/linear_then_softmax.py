"""`linear_then_softmax`: prompt tokens' linear readouts, weighed by softmax(readout / 5), as in the research code."""

from typing import ClassVar

import numpy as np

from probes.token_readout import Floats, TokenReadout

TEMPERATURE = 5.0


class LinearThenSoftmax(TokenReadout):
    kind: ClassVar[str] = "linear_then_softmax"

    @classmethod
    def pool(cls, tokens: Floats) -> tuple[Floats, Floats]:
        logits = tokens[:, :, 0]
        share = np.exp((logits - logits.max(axis=0)) / TEMPERATURE)
        share /= share.sum(axis=0)  # (T, probes)
        output = (share * logits).sum(axis=0)
        return output, (share * (1 + (logits - output) / TEMPERATURE))[:, :, None]
