"""The gateway's listening socket, and who may reach it."""

import socket
from typing import Any

from server.config import ConfigError
from server.http.loopback import is_local_address
from server.sections.serving import Server


def listen(server: Server) -> socket.socket:
    """
    Raises:
        ConfigError: the address cannot be listened on, or other machines may reach it and nobody said so.
    """
    try:
        family, kind, protocol, address = resolve(server)
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            # Two sockets may both be bound with SO_REUSEADDR, but only one can listen. Who asks early waits.
            sock.listen()
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        why = f"cannot listen on {server.host}:{server.port} ({error.strerror or error})"
        raise ConfigError(f"{why}: free it, or choose another with --port") from error
    return sock


def resolve(server: Server) -> tuple[int, int, int, Any]:
    """Family, kind, protocol and address of the socket.

    Raises:
        ConfigError: there is no such port, or other machines may reach it and nobody said so.
        OSError: the host is not known.
    """
    if not 0 <= server.port <= 65535:  # the command line's is checked nowhere else
        raise ConfigError(f"port {server.port} does not exist: choose one from 0 (any free one) to 65535")
    family, kind, protocol, _, address = socket.getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)[0]
    if not server.public and not is_local_address(str(address[0])):
        raise ConfigError(
            f"other machines may reach {server.host}, and whoever does may ask, unless `keys` has them send one. If "
            "that is meant, say --public (server.public: true); else listen on 127.0.0.1"
        )
    return family, kind, protocol, address


def url_of(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
