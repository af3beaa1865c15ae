"""A trial of another policy: a share of the conversations goes by it, and both groups are measured side by side."""

from dataclasses import dataclass
from hashlib import blake2b

from server.config import Settings
from server.pool import Pool
from server.routing.policies import Policies
from server.routing.session import Conversation, Group


@dataclass(frozen=True)
class Canary:
    """The candidate, and who goes by it."""

    share: float
    policies: Policies

    def group_of(self, conversation: Conversation, request_id: str) -> Group:
        """A conversation stays in the group that it began in; what begins falls into one by the hash of its name, or
        of the request's where it has none, so that equal prompts are divided too."""
        kept = conversation.kept
        if kept is not None and kept.group is not None and 0 < self.share < 1:
            return kept.group
        known = conversation.named or conversation.turn > 0
        drawn = _uniform(conversation.key if known else request_id.encode())
        return "canary" if drawn < self.share else "control"


def build_canary(settings: Settings, pool: Pool) -> Canary | None:
    """
    Raises:
        ConfigError: the candidate's knobs are out of range, or its tuning file is broken.
    """
    if settings.canary is None:
        return None
    policies = Policies(settings, pool.tier_cost, pool.probes_sha256, settings.canary.policy, "canary.policy")
    return Canary(settings.canary.share, policies)


def _uniform(name: bytes) -> float:
    """A number in [0, 1) that looks drawn at random, and is the same whenever this is asked for."""
    return int.from_bytes(blake2b(name, digest_size=8, person=b"canary").digest()) / 2**64
