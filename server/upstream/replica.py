"""One upstream server as the gateway sees it now, and which of several takes a request."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from urllib.parse import urlsplit

from server.upstream.breaker import Breaker
from server.upstream.keep_alive import Upstream

SLOW_START_S = 10.0
"""After a recovery a replica's share of requests rises from a tenth to the whole over this time."""
MAX_ASIDE_S = 60.0
"""The longest that a Retry-After is believed."""
CACHE_FULL = 0.8
"""From this use of its key-value cache on, a vLLM server is about to preempt requests."""
MUCH_MORE = 2.0
"""Prefix affinity yields where its replica's load is more than so many times the least one."""


class Wellness(IntEnum):
    """How far one would rather ask another."""

    WELL = 0
    SET_ASIDE = 1
    """It asked to be left alone for a while."""
    UNHEALTHY = 2
    """It failed its last health check."""


WELL, SET_ASIDE, UNHEALTHY = Wellness  # an enum's attribute takes ten times as long as a name


@dataclass
class Load:
    """What a vLLM server says of itself; zeros where it says nothing."""

    running: float = 0.0
    waiting: float = 0.0
    cache_use: float = 0.0
    """Of the key-value cache, in [0, 1]."""
    ours: int = 0
    """Of these requests, those that were ours when it was asked."""


@dataclass(eq=False)
class Replica:
    """Times are seconds of `time.monotonic`."""

    name: str
    """host:port, also its metrics label."""
    upstream: Upstream = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    """Sent upstream; holds the key."""
    url: str
    in_flight: int = 0
    healthy: bool = True
    """As the last health check found it."""
    breaker: Breaker = field(default_factory=Breaker)
    load: Load = field(default_factory=Load)
    _aside_until: float = 0.0
    _recovered_at: float = -SLOW_START_S
    _chosen_at: float = 0.0

    @classmethod
    def at(cls, url: str, headers: Mapping[str, str]) -> "Replica":
        """The replica whose base URL this is."""
        return cls(urlsplit(url).netloc, Upstream(url, headers), headers, url)

    def state(self, now: float) -> "Wellness":
        """What stands against sending something here."""
        if not self.healthy:
            return UNHEALTHY
        return SET_ASIDE if self._aside_until > now else WELL

    def set_aside(self, seconds: float, now: float) -> None:
        """The server asks to be left alone."""
        self._aside_until = max(self._aside_until, now + min(seconds, MAX_ASIDE_S))

    def recovered(self, now: float) -> None:
        """It takes requests again, few at first."""
        self._recovered_at = now

    def busyness(self, now: float) -> float:
        """What a further request would find: requests there, ours and others', the waiting ones counted twice."""
        load = self.load
        others = max(0.0, load.running + load.waiting - load.ours)
        busy = self.in_flight + 1 + others + load.waiting
        if load.cache_use > CACHE_FULL:
            busy *= 1 + (load.cache_use - CACHE_FULL) / (1 - CACHE_FULL)
        since = now - self._recovered_at
        return busy if since >= SLOW_START_S else busy / max(0.1, since / SLOW_START_S)


def choose(
    replicas: Sequence[Replica],
    tried: Collection[Replica],
    now: float,
    prefix: bytes | None,
    worst: Wellness = WELL,
    kept: str | None = None,
) -> Replica | None:
    """The least busy replica that was not tried, of several the one longest not chosen; None without one.

    Args:
        prefix: requests that begin alike go to the same replica while it is not much busier than others.
        worst: what is less well than this is not chosen.
        kept: a replica's name that is chosen while it is not much busier than others.
    """
    able = [one for one in replicas if one not in tried and not one.breaker.wait_s(now) and one.state(now) <= worst]
    if not able:
        return None
    chosen = able[0]
    if len(able) > 1:
        chosen = min(able, key=lambda one: (one.busyness(now), one._chosen_at))
        near = next((one for one in able if one.name == kept), None)
        if near is None and prefix is not None:
            # Rendezvous hashing: a replica that comes or goes moves its own prefixes alone.
            near = max(able, key=lambda one: hashlib.blake2b(prefix + one.name.encode(), digest_size=8).digest())
        if near is not None and near.busyness(now) <= MUCH_MORE * chosen.busyness(now):
            chosen = near
    chosen._chosen_at = now
    return chosen
