"""Users' keys as the gateway has them: which key a request bears, and what it may ask for.

A change of the file holds a second later, without a reload; what is wrong with it leaves the keys as they were.
"""

import difflib
import hmac
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from routing_policies.base import NAMES, PolicyError
from server.config import ConfigError
from server.errors import BadRequestError, InvalidKeyError, NotAllowedError
from server.keys.file import Located, Period, read_keys
from server.keys.rate_limit import owner_of
from server.routing.knobs import parse_knobs
from server.routing.policies import Policies
from server.sections.policy import ROUTING_FIELDS

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often it is looked whether the file has changed."""
OPEN = frozenset(("/health", "/ready", "/metrics", "/openapi.json"))
OPEN_BELOW = ("/dashboard", "/admin")
"""These ask for the operator's key, or for nobody's."""


@dataclass(frozen=True)
class Key:
    """What a user's key may do."""

    name: str
    sha256: bytes
    owner: bytes
    """By what its buckets are found."""
    arms: tuple[str, ...] | None
    """In the pool's order; None: all."""
    policies: frozenset[str] | None
    """None: all."""
    knobs: Mapping[str, Any]
    """Where a request sets none."""
    requests_per_minute: int | None
    tokens_per_minute: int | None
    budgets_usd: Mapping[Period, float]
    """Empty: as much as comes."""

    def permit(self, asked: Mapping[str, Any], pinned: str | None, policy: str) -> dict[str, Any]:
        """A request's knobs with the key's own where it sets none.

        Args:
            asked: the knobs that the request sets.
            pinned: the arm that it names, if it does.
            policy: the configured one.

        Raises:
            NotAllowedError: it asks for an arm or a policy that the key may not use.
        """
        knobs = {**self.knobs, **asked}
        if self.arms is not None:
            for arm in (*([] if pinned is None else [pinned]), *knobs.get("arms", ())):
                if arm not in self.arms:
                    raise NotAllowedError(f"this key may not use the arm {arm!r}; it may use {', '.join(self.arms)}")
            knobs.setdefault("arms", list(self.arms))
        if self.policies is not None and "policy" in asked:
            allowed = self.policies | {self.knobs.get("policy", policy)}
            if asked["policy"] not in allowed:
                raise NotAllowedError(
                    f"this key may not use the policy {asked['policy']}; it may use {', '.join(sorted(allowed))}"
                )
        return knobs


class Keyring:
    """
    Args:
        file: as `pika keys` writes it.
        arms: names of the pool's arms, in order.
        ledger: whether there is one, in which budgets could be kept.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong; names the line.
    """

    def __init__(self, file: Path, arms: list[str], policies: Policies, ledger: bool) -> None:
        self.file = file
        self.problem: str | None = None
        """Why the file is not what is in force."""
        self._arms = arms
        self._policies = policies
        self._ledger = ledger
        self._seen = _signature(file)
        self._keys: dict[bytes, Key] = {}
        self._stop = threading.Event()
        self._read()

    def find(self, secret: bytes) -> Key:
        """Whose key this is.

        Raises:
            InvalidKeyError: nobody's.
        """
        digest = sha256(secret).digest()
        key = self._keys.get(digest)
        if key is None or not hmac.compare_digest(key.sha256, digest):
            raise InvalidKeyError
        return key

    @property
    def keys(self) -> list[Key]:
        """All that are in force."""
        return list(self._keys.values())

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Follow the file's changes, in a thread of its own, which no disk that hangs makes others wait for."""
        thread = threading.Thread(target=self._watch, name="keys", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(2 * LOOK_S)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_S):
            signature = _signature(self.file)
            if signature == self._seen:
                continue
            self._seen = signature
            try:
                self._read()
            except Exception as error:
                self.problem = "the file of keys cannot be used: those read before stay; the log says why"
                known = isinstance(error, ConfigError)
                logger.error("keys stay as they were: %s", error if known else repr(error))
            else:
                self.problem = None
                logger.info("keys read again: %d", len(self._keys))

    def _read(self) -> None:
        keys = [self._key(name, located) for name, located in read_keys(self.file).items()]
        self._keys = {key.sha256: key for key in keys}

    def _key(self, name: str, located: Located) -> Key:
        entry = located.entry
        for arm in entry.arms or ():
            if arm not in self._arms:
                raise located.error("arms", f"of {name} names the unknown arm {arm!r}: {_nearest(arm, self._arms)}")
        for policy in entry.policies or ():
            if policy not in NAMES:
                raise located.error(
                    "policies", f"of {name} names the unknown policy {policy!r}: {_nearest(policy, NAMES)}"
                )
        try:
            knobs = parse_knobs({"routing": entry.routing}, {}, "auto", ROUTING_FIELDS, self._arms)
            self._policies.get({k: v for k, v in knobs.items() if k not in ("arms", "max_cost_usd", "fallback")})
        except (BadRequestError, PolicyError) as error:
            raise located.error("routing", f"of {name}: {error}") from None
        if entry.budgets_usd and not self._ledger:
            field = f"usd_per_{next(iter(entry.budgets_usd))}"
            raise located.error(
                field, f"of {name}: budgets are kept in the ledger: add `ledger: {{}}` to the configuration"
            )
        arms = None if entry.arms is None else tuple(arm for arm in self._arms if arm in entry.arms)
        key = Key(
            name=name,
            sha256=bytes.fromhex(entry.sha256),
            owner=owner_of(name),
            arms=arms,
            policies=None if entry.policies is None else frozenset(entry.policies),
            knobs=knobs,
            requests_per_minute=entry.requests_per_minute,
            tokens_per_minute=entry.tokens_per_minute,
            budgets_usd=entry.budgets_usd,
        )
        try:
            key.permit({}, None, self._policies.name)
        except NotAllowedError as error:
            raise located.error("routing", f"of {name}: {error}") from None
        return key


def is_open(path: str) -> bool:
    """Whether no user's key is asked for."""
    return path in OPEN or any(path == one or path.startswith(one + "/") for one in OPEN_BELOW)


def _signature(file: Path) -> tuple[int, ...] | None:
    """What changes when the file does; None where it is not there."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _nearest(word: str, valid: Any) -> str:
    near = difflib.get_close_matches(word[:64], valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(valid)}"
