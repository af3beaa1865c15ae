"""Who may see and do what is the operator's: whoever has the admin key, or sits at this machine.

The admin key comes from the environment (`admin.key_env`); only its SHA-256 is kept. Users' keys open nothing here.
"""

import hmac
import os
from collections.abc import Iterable
from hashlib import sha256

from server.config import ConfigError
from server.errors import AdminKeyError, AdminOffError
from server.http.asgi import Scope
from server.http.head import bearer_token
from server.http.loopback import LOCAL_HOST, is_local_address
from server.sections.serving import Admin
from server.state import State

MIN_ADMIN_KEY = 16
"""Characters: nothing slows down who guesses."""
FORWARDED = frozenset((b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"))
"""Headers by which a proxy says that somebody else asks."""


def admin_sha256(admin: Admin | None) -> bytes | None:
    """Hash of the admin key; None where there is none.

    Raises:
        ConfigError: its variable is not set, or holds a word that could be guessed.
    """
    if admin is None:
        return None
    key = os.environ.get(admin.key_env, "")
    if len(key) < MIN_ADMIN_KEY:
        what = "has" if key else "is not set: it needs"
        raise ConfigError(
            f"admin.key_env: {admin.key_env} {what} {'fewer than' if key else 'at least'} {MIN_ADMIN_KEY} characters; "
            "`openssl rand -hex 32` makes a good one"
        )
    return sha256(key.encode()).digest()


def check_admin(state: State, scope: Scope) -> None:
    """
    Raises:
        AdminOffError: there is no admin key.
        AdminKeyError: the request does not bear it.
    """
    if state.admin_sha256 is None:
        raise AdminOffError
    if not hmac.compare_digest(sha256(bearer(scope["headers"])).digest(), state.admin_sha256):
        raise AdminKeyError


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The secret of a request's `authorization: Bearer ...`; empty without one, or where the header stands twice."""
    found = [value for name, value in headers if name == b"authorization"]
    return bearer_token(found[0]) if len(found) == 1 else b""


def is_loopback(scope: Scope) -> bool:
    """Whether somebody at this machine asks, for this machine.

    A proxy beside us, and a page whose name was made to lead here, come from this machine too: the one says for whom it
    asks, the other asks for another host.
    """
    client = scope.get("client")
    if client is None or not is_local_address(client[0]):
        return False
    headers = scope["headers"]
    hosts = [value for name, value in headers if name == b"host"]
    return (
        len(hosts) == 1
        and LOCAL_HOST.fullmatch(hosts[0].lower()) is not None
        and not any(name in FORWARDED for name, _ in headers)
    )
