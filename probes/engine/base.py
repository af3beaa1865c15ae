"""What an engine is: prompts in; success probabilities, output tokens and activation percentiles out."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol, Self

import numpy as np

from probes.base import FloatArray

CHARACTERS_PER_TOKEN = 4
"""By which text counts in queues."""

NOT_FINITE = (
    "activations are not finite numbers: serve the probe model in float32 or bfloat16; where it is, its weights have "
    "NaN or infinity: get its files again"
)
TOO_LATE = "the engine did not answer before the deadline (engine.deadline_ms)"
CLOSED = "the engine is closed"


class EngineUnavailableError(Exception):
    """The engine cannot answer now: its queue is full, the deadline has passed, or its process died."""


class BrokenEngineError(Exception):
    """Only another process can compute again: a computation never ends, or a GPU fails whatever it is asked."""


@dataclass(frozen=True)
class Prompt:
    """One conversation, rendered and tokenised once per pass."""

    token_ids: tuple[tuple[int, ...], ...]
    """One entry per pass of the engine, in its order."""
    text: str = ""
    """The conversation's text, where a probe of the engine reads text."""

    @property
    def tokens(self) -> int:
        """What it takes up in a queue."""
        return sum(map(len, self.token_ids)) + len(self.text) // CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class EngineOptions:
    """How an engine's process computes."""

    device: str = "auto"
    """cpu, cuda:N, or auto: the first GPU where there is one."""
    queue_prompts: int = 512
    queue_tokens: int = 200_000
    """What may wait; more is refused at once."""
    cache_prompts: int = 16_384
    """Of so many prompts the scores are kept, a few hundred bytes each."""


@dataclass(frozen=True)
class Scores:
    """What the probes read from n prompts; each field (n, probes), probes in the engine's order."""

    success: FloatArray
    """Calibrated success probabilities; from an engine's process NaN where an activation is not a finite number."""
    output_tokens: FloatArray
    """Expected output tokens of an answer; NaN where the probe has no output-token head."""
    activation_percentile: FloatArray
    """Share of in-distribution prompts, in percent, whose activation is nearer to the training prompts'; NaN where the
    probe has no statistics."""

    def __getitem__(self, rows: slice) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence["Scores"]) -> Self:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


class Engine(Protocol):
    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """Score prompts before `deadline` (seconds of the event loop's clock).

        Raises:
            EngineUnavailableError: at once where the queue is full, at the deadline where the answer is not there.
        """
        ...

    async def start(self) -> None:
        """Load the probe models and return when the engine can score."""
        ...

    async def close(self) -> None: ...

    @property
    def ready(self) -> bool: ...
