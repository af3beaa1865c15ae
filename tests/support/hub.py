"""A Hugging Face Hub on loopback, in memory: what the real `huggingface_hub` client asks of one, and faults on demand.

with running() as hub:
    hub.repository("ann/probes").commit({"small/config.json": b"{}"})
    hub.fails("GET /api/models/", status(500))

Models and datasets; repositories private, public or gated; branches, tags, commits; the tree, by pages; files by HEAD
and GET with ranges, large ones by a redirect to another host; preupload, LFS and commits with optimistic locking. Xet
storage is not offered: set HF_HUB_DISABLE_XET.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer

from tests.support.hub_http import Handler
from tests.support.hub_store import TOKEN, Fault, Hub, Repository

__all__ = ["TOKEN", "Fault", "Hub", "Repository"]


def status(code: int, error: str = "", **headers: str) -> Fault:
    def fault(handler: Handler) -> bool:
        handler.answer(code, error.encode(), {name.replace("_", "-"): value for name, value in headers.items()})
        return True

    return fault


def cut(after: int) -> Fault:
    """The connection closes after so many bytes of the body."""

    def fault(handler: Handler) -> bool:
        handler.cut_after = after
        return False

    return fault


def reset(handler: Handler) -> bool:
    """The connection is reset before any answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.connection.close()
    return True


def stall(handler: Handler) -> bool:
    """No answer until the Hub stops, or half a minute has passed."""
    handler.hub.stopped.wait(30)
    handler.close_connection = True
    return True


def wrong_size(by: int) -> Fault:
    """Headers tell of more bytes than there are."""

    def fault(handler: Handler) -> bool:
        handler.size_error = by
        return False

    return fault


def not_the_hub(handler: Handler) -> bool:
    """As behind the log-in page of a wireless network."""
    handler.answer(200, b"<html>Welcome to our hotel</html>", {"content-type": "text/html"})
    return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        pass  # a client that leaves, which some tests are about


@contextmanager
def running() -> Iterator[Hub]:
    """A Hub in threads of its own."""
    hub = Hub()
    server = _Server(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub}))
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
