"""What the gateway hands to the ledger; no SQLAlchemy here, for requests make these."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

BEGINNING_BYTES = 512
"""Of an answer: where its id stands."""
AHEAD_S = 60.0
"""Clocks of several machines may differ by so much."""


@dataclass(slots=True)
class DecisionRow:
    """One request that was decided on, at its end. Indices and arrays are by the pool's arms, (k,)."""

    request_id: str
    at: float
    """Unix seconds when the whole request had been read."""
    arm: int
    policy_arm: int
    """What the policy itself would have chosen."""
    policy: str
    path: str
    flags: Sequence[str]
    propensity: float
    """Probability with which this arm was drawn, given the request: 1 but where chance took part."""
    allowed: BoolArray
    """Arms that could serve it."""
    success: FloatArray
    """Success probabilities; NaN where unknown."""
    cost: FloatArray
    """Expected USD of one answer."""
    percentile: float | None
    probe_usd: float
    code: int
    attempts: int
    input_tokens: int | None
    """None, as below, where the upstream sent no usage."""
    output_tokens: int | None
    routing_s: float
    total_s: float
    stream: bool
    beginning: bytes = b""
    """The answer's first bytes; see `BEGINNING_BYTES`."""
    key: str | None = None
    """Name of the client's key."""
    session: str | None = None
    """Hash of the conversation."""
    prompt: str | None = None


@dataclass(frozen=True)
class PoolRow:
    """What decisions are made among, by arm."""

    arms: Sequence[str]
    prices: Sequence[tuple[float, float]]
    """(input, output) USD per million tokens."""
    mean_tokens: Sequence[tuple[float, float]]
    """(input, output)"""
    probes: Sequence[str | None]
    """name@revision"""
    policy: Mapping[str, Any]
    """`name`, and the knobs that are configured."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """Where a conversation is."""

    session: str
    """Hash."""
    arm: str
    """Name of the arm that the conversation is on."""
    last: str
    """Of the one that answered last."""
    replica: str | None
    trial: str | None
    """Its group, where two policies are compared."""
    turn: int
    """How many answers it held when it was last asked for another."""
    at: float
    """When that was, in Unix seconds."""
