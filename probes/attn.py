"""`attn`: attention with one learnt query over all prompt tokens, then a linear readout of the pooled vector.

Tokens are weighed by softmax(x . query / sqrt(d_model)), as in the research code. The readout of a weighted mean of
vectors is the same weighted mean of the vectors' readouts, so the vector itself is never made.
"""

from typing import ClassVar

import numpy as np

from probes.token_readout import Floats, TokenReadout


class Attn(TokenReadout):
    kind: ClassVar[str] = "attn"
    readouts: ClassVar[tuple[str, ...]] = ("weight", "query")

    @classmethod
    def scale(cls, d_model: int) -> tuple[float, ...]:
        return 1.0, 1 / np.sqrt(d_model)

    @classmethod
    def pool(cls, tokens: Floats) -> tuple[Floats, Floats]:
        logits, scores = tokens[:, :, 0], tokens[:, :, 1]
        share = np.exp(scores - scores.max(axis=0))
        share /= share.sum(axis=0)  # (T, probes)
        output = (share * logits).sum(axis=0)
        return output, np.stack([share, share * (logits - output)], axis=2)
