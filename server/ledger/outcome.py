"""What is said of an answer, and what the ledger says to that; no SQLAlchemy here, for requests make these."""

from dataclasses import dataclass

MAX_SOURCES = 16
"""Of one answer; two that write at the same moment may make it a few more."""


@dataclass(frozen=True)
class Outcome:
    """How right an answer was, as somebody says."""

    id: str
    """Of the request, or of the response."""
    source: str
    correct: float
    """0 to 1."""
    key: str | None = None
    """Name of the client's key, which must be the request's own; None where no keys are asked for."""


@dataclass(frozen=True)
class Recorded:
    """An outcome, and what was decided of its request."""

    request_id: str
    arm: str
    code: int
    """HTTP status of the answer; of one that is not 200 there is no outcome, and none is recorded."""
    success_probability: float | None
    """None where the prompt was not scored."""
    changed: bool
    """Whether the ledger did not say so before."""
    full: bool = False
    """Whether `MAX_SOURCES` others have spoken already, so that nothing is recorded."""
