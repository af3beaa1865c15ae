"""A wire to a PostgreSQL server that breaks once a commit is through, before its answer is."""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Wire:
    """
    Args:
        port: of the server, on loopback.
    """

    def __init__(self, port: int) -> None:
        self.armed = False
        """Whether the next commit's answer is lost; that one alone."""
        self.lost = threading.Event()
        self._port = port
        self.listener = socket.create_server(("127.0.0.1", 0))

    def url(self, direct: str) -> str:
        """A database's URL, by way of this wire."""
        return direct.replace(f":{self._port}/", f":{self.listener.getsockname()[1]}/")

    def accept(self) -> None:
        with suppress(OSError):  # the listener is closed
            while True:
                client = self.listener.accept()[0]
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        commits = False
        with suppress(OSError), client, socket.create_connection(("127.0.0.1", self._port)) as server:
            while True:
                for source in select.select([client, server], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is client:
                        if self.armed and b"COMMIT" in data:
                            self.armed, commits = False, True
                        server.sendall(data)
                    elif commits:
                        self.lost.set()
                        return
                    else:
                        client.sendall(data)


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    between = Wire(port)
    thread = threading.Thread(target=between.accept, daemon=True)
    thread.start()
    try:
        yield between
    finally:
        with suppress(OSError):
            between.listener.shutdown(socket.SHUT_RDWR)
        between.listener.close()
        thread.join(10)
