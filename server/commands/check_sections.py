"""What `pika check` finds of the sections that a configuration may leave out."""

from collections.abc import Iterator
from dataclasses import dataclass

from server.access import admin_sha256
from server.config import ConfigError, Settings
from server.kept import check_ledger
from server.live import build_keys
from server.pool import Pool
from server.routing.policies import Policies


@dataclass(frozen=True)
class Finding:
    """One thing that was checked."""

    subject: str
    good: bool
    message: str


def lived_with(settings: Settings) -> Iterator[Finding]:
    """What becomes of the policy's choices."""
    if settings.session is not None:
        alone = settings.server.workers > 1 and settings.ledger is None
        said = (
            "each worker knows only the conversations that come back to it: add `ledger: {}`, which all of them share"
            if alone
            else f"conversations stay unless another arm gains more than {settings.session.margin:g}"
        )
        yield Finding("session", not alone, said)
    if settings.canary is not None:
        yield Finding("canary", True, f"{settings.canary.share:.0%} of conversations go by canary.policy")
    if settings.shadow is not None:
        yield Finding("shadow", True, f"whatever is not pinned is sent to {settings.shadow.arm}, where it can serve it")


def ledger(settings: Settings) -> Iterator[Finding]:
    """Whether the ledger's database is there, or can be made; nothing is made or changed."""
    if settings.ledger is None:
        return
    try:
        check_ledger(settings)
        assert settings.ledger_url is not None
        from server.ledger.database import looked_at

        good, said = looked_at(settings.ledger_url)
        yield Finding("ledger", good, said)
    except ConfigError as error:
        yield Finding("ledger", False, str(error))


def keys(pool: Pool, settings: Settings) -> Iterator[Finding]:
    """Whether users' keys and the operator's can be used."""
    try:
        ring = build_keys(settings, pool, Policies(settings, pool.tier_cost, pool.probes_sha256))
        if ring is not None:
            nobody = "" if ring.keys else ": nobody may ask"
            yield Finding("keys", not nobody, f"{len(ring.keys)} in {ring.file}{nobody}")
    except ConfigError as error:
        yield Finding("keys", False, str(error))
    try:
        if admin_sha256(settings.admin) is not None:
            yield Finding("admin", True, "/admin asks for the key in the environment")
    except ConfigError as error:
        yield Finding("admin", False, str(error))
