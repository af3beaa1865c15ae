"""The sections of a configuration file that say how a policy is lived with: conversations, trials. pydantic alone."""

from pydantic import Field

from server.sections.base import Section
from server.sections.policy import Policy


class Session(Section):
    """Conversations stay on their arm and its replica, whose prefix cache knows them."""

    margin: float = Field(default=0.05, ge=0, allow_inf_nan=False)
    """A conversation moves where the policy gains more than this by another arm, in success probability or what the
    policy has in its place (`Policy.gain`)."""
    minutes: float = Field(default=60, gt=0, le=60 * 24 * 366)
    """A conversation that nobody went on with for so long is forgotten."""


class Shadow(Section):
    """Everything is decided and recorded as if it were done, and sent to one arm."""

    arm: str
    """Where it can serve the request."""


class Canary(Section):
    """A share of the traffic goes by another policy, both measured side by side."""

    share: float = Field(ge=0, le=1)
    """Of the conversations that name no policy of their own."""
    policy: Policy
    """The candidate, written as `policy` is."""
