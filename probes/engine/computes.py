"""What computes micro-batches, and how fast. Imports no torch."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from probes.artifact import Artifact
from probes.card import Pass
from probes.engine.base import CHARACTERS_PER_TOKEN, Prompt, Scores
from probes.engine.pace import Pace, measure


class Computes(Protocol):
    """What `LocalEngine` does, on the thread that calls it."""

    @property
    def passes(self) -> Sequence[Pass]: ...

    @property
    def artifacts(self) -> Sequence[Artifact]: ...

    @property
    def padding_tokens(self) -> int: ...

    @property
    def reused_tokens(self) -> int: ...

    def score(self, prompts: Sequence[Prompt], *, partial: bool = False) -> Scores: ...


def pace_of(computes: Computes) -> Pace:
    """Measured with random prompts."""
    rng = np.random.default_rng(0)
    reads_text = any(artifact.probe.reads == "text" for artifact in computes.artifacts)

    def score(n: int, tokens: int) -> int:
        prompts = [
            Prompt(
                # Of ids that every vocabulary has; prompts that share no prefix, which might be computed once.
                tuple(tuple(rng.integers(0, 10, tokens).tolist()) for _ in computes.passes),
                "a " * (tokens * CHARACTERS_PER_TOKEN // 2) if reads_text else "",
            )
            for _ in range(n)
        ]
        computes.score(prompts, partial=True)
        return sum(prompt.tokens for prompt in prompts)

    return measure(score)
