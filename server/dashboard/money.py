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
class Totals:
    """All arms together."""

    arms: tuple[ArmTotal, ...]
    requests: int
    errors: int
    spent_usd: float
    """The probe's prefill included."""
    probe_usd: float
    expected: Share
    """By success probability; the interval is of what would be observed if the probabilities are true."""
    observed: Share
    """By outcomes."""
