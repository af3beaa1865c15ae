"""Accepting at a socket that several workers share: whoever has the fewest connections goes first.

Left to the kernel, whoever wakes first takes all that waits, and eight kept connections may be one worker's. So each
worker tells how many it has, and who has more than another gives way for a moment. Nobody depends on anybody: after
that moment it accepts.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sized
from pathlib import Path

import numpy as np

logger = logging.getLogger(__name__)

GIVE_WAY_S = 0.005
"""An idle worker accepts sooner; at one that hangs or is very busy nobody waits longer."""
FULL_S = 0.5
"""Where no file may be opened any more, accepting is tried again after this time."""
AWAY = 2**40
"""A worker that does not accept: nobody gives way to it."""


class Counts:
    """How many connections each worker has, in a file that all of them map.

    Args:
        folder: where it is.
        workers: how many there are.
    """

    def __init__(self, folder: Path, workers: int) -> None:
        path = folder / "connections.i8"
        if not path.exists():  # the parent makes it, before there are workers
            np.full(workers, AWAY).tofile(path)
        self._counts = np.memmap(path, np.int64, "r+", shape=(workers,))

    def tell(self, slot: int, count: int) -> None:
        self._counts[slot] = count

    def least(self, slot: int) -> int:
        """What the least busy of the others has."""
        others = np.delete(self._counts, slot)
        return int(others.min()) if len(others) else AWAY


class Acceptor:
    """Stands in for asyncio's server.

    Args:
        make: makes a connection's protocol.
        connections: all that are open.
    """

    def __init__(
        self,
        sock: socket.socket,
        counts: Counts,
        slot: int,
        make: Callable[[], asyncio.Protocol],
        connections: Sized,
    ) -> None:
        self._sock = sock
        self._counts = counts
        self._slot = slot
        self._make = make
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[object]] = set()
        self._paused: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self.tell()
        self._loop.add_reader(sock, self._accept_some)

    def tell(self) -> None:
        """Let the others know how many connections there are here. Called now and then, for those that have ended."""
        self._counts.tell(self._slot, self._count)

    @property
    def _count(self) -> int:
        return len(self._connections) + len(self._opening)

    def _accept_some(self) -> None:
        """Accept while nobody has fewer; an eighth makes no difference."""
        while self._count <= (least := self._counts.least(self._slot)) + least // 8:
            if not self._accept():
                return
        self._pause(GIVE_WAY_S)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock)
        self._paused = self._loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        self._paused = None
        self._loop.add_reader(self._sock, self._accept_some)
        self._accept()

    def _accept(self) -> bool:
        """Whether there was one, and there may be more."""
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                raise
            logger.error("no connection can be accepted: %s; raise `ulimit -Hn`, or lower limits.connections", error)
            self._pause(FULL_S)
            return False
        sock.setblocking(False)
        task = self._loop.create_task(self._open(sock))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self.tell()
        return True

    async def _open(self, sock: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make, sock)
        except OSError:  # it is gone already
            sock.close()

    def close(self) -> None:
        """Accept no more."""
        self._counts.tell(self._slot, AWAY)
        if self._paused is not None:
            self._paused.cancel()
        else:
            self._loop.remove_reader(self._sock)
        self._sock.close()

    async def wait_closed(self) -> None:
        """For uvicorn, which waits for its connections itself."""
