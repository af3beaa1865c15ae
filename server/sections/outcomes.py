"""Sections of a configuration file about what comes of answers. pydantic alone."""

from pydantic import Field

from server.sections.base import Section


class Audit(Section):
    """Some routed requests go to a random arm, so that the accuracy of arms that are not chosen can be told."""

    share: float = Field(default=0.01, gt=0, le=1)
    """Of the routed requests that more than one arm can serve."""


class Outcomes(Section):
    """Which outcomes `pika_calibration_error` and `pika_brier` look at: of each arm the latest ones."""

    window: int = Field(default=2000, ge=1, le=100_000)
    """Outcomes at the most."""
    hours: float = Field(default=168, gt=0, allow_inf_nan=False)
    """No older ones."""
