"""What a period's requests cost, and what one arm alone would have cost."""

from dataclasses import dataclass

from server.dashboard.shares import Share


@dataclass(frozen=True)
class ArmTotal:
    """What one arm did in a period, and what it would have cost alone. USD."""

    name: str
    requests: int
    errors: int
    cost_usd: float
    always_usd: float | None
    """Of the requests of pools that have this arm; None where there are none."""
    saved_usd: float | None
    """Against it alone: the probe's prefill is paid by routing alone."""
    saved_share: float | None


@dataclass(frozen=True)
class Way:
    """The requests that one policy sent one way: a candidate policy's, say, beside the configured one's."""

    policy: str
    path: str
    requests: int
    errors: int
    cost_usd: float | None
    """Mean of an answer whose cost is known."""
    expected: Share
    observed: Share


@dataclass(frozen=True)
class Totals:
    """All requests together, and what routing made of those that no client had pinned to an arm."""

    requests: int
    errors: int
    pinned: int | None
    """None where it is not known."""
    spent_usd: float
    """The probe's prefill included."""
    probe_usd: float
    arms: tuple[ArmTotal, ...]
    """Of routed requests, as what follows."""
    expected: Share
    """By success probability; the interval is of what would be observed if the probabilities are true."""
    observed: Share
    """By outcomes."""
    ways: tuple[Way, ...]
    """Pinned requests too."""
