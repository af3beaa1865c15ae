"""What is this machine alone."""

import re
from ipaddress import ip_address

LOCAL_HOST = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
"""As a `host` header names it."""
LOCAL_PAGE = re.compile(rb"https?://" + LOCAL_HOST.pattern)
"""As an `origin` header names pages that it serves."""


def is_local_address(host: str) -> bool:
    """Whether only this machine is reached there, or asks from there; host names but `localhost` may change."""
    try:
        return host == "localhost" or ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False
