"""What an engine is: token ids in, success probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from probes.base import FloatArray


class EngineUnavailableError(Exception):
    """The engine cannot answer now: its queue is full, the deadline has passed, or its process died."""


@dataclass(frozen=True)
class Prompt:
    """One conversation, rendered and tokenised once per pass."""

    token_ids: tuple[tuple[int, ...], ...]
    """One entry per pass of the engine, in its order."""


@dataclass(frozen=True)
class Scores:
    """What the probes read from n prompts."""

    success: FloatArray
    """Calibrated success probabilities, (n, probes), probes in the engine's order."""


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
