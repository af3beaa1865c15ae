"""Where an engine listens: `unix:///run/pika/engine.sock` or `tcp://host:port`."""

import asyncio
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from probes.base import ProbeError

P = TypeVar("P", bound=asyncio.Protocol)


def check_url(url: str) -> str:
    """The url itself.

    Raises:
        ValueError: it is no address of an engine.
    """
    parts = urlsplit(url)
    if parts.scheme == "unix" and not parts.netloc and parts.path.startswith("/"):
        return url
    if parts.scheme != "tcp" or not parts.hostname or parts.port is None or parts.path or "@" in parts.netloc:
        raise ValueError(f"{url!r} is no address of an engine: tcp://HOST:PORT or unix:///PATH")
    return url


async def connect(url: str, protocol: Callable[[], P]) -> P:
    """
    Raises:
        OSError: nobody listens there.
    """
    loop = asyncio.get_running_loop()
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return (await loop.create_unix_connection(protocol, parts.path))[1]
    host, port = parts.hostname or "", parts.port or 0  # `check_url` has seen to both
    return (await loop.create_connection(protocol, host, port))[1]


def bind(url: str) -> socket.socket:
    """A bound socket that does not listen yet: who asks too early is refused instead of kept waiting.

    Raises:
        ProbeError: the address cannot be taken.
    """
    parts = urlsplit(url)
    try:
        if parts.scheme == "unix":
            return _bind_unix(Path(parts.path))
        family, kind, protocol, _, address = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise ProbeError(f"cannot listen at {url} ({error.strerror or error}): free it, or choose another") from error
    return sock


def _bind_unix(path: Path) -> socket.socket:
    """Only this user may connect. A socket that a dead process left behind is replaced.

    Raises:
        OSError: somebody listens there, or the path cannot be made.
    """
    sock = socket.socket(socket.AF_UNIX)
    try:
        if path.is_socket():
            with socket.socket(socket.AF_UNIX) as other:
                try:
                    other.connect(str(path))
                except ConnectionRefusedError:
                    path.unlink()
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
    except BaseException:
        sock.close()
        raise
    return sock
