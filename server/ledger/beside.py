"""Work that a second process does meanwhile.

with beside(work, 3) as result:
    mine = work(4)
    theirs = result()
"""

import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def beside(work: Callable[..., T], *args: Any) -> Iterator[Callable[[], T | None]]:
    """Start it in another process.

    Args:
        work: takes no lock that a thread of this process may hold now, for the process is a copy of this one.

    Yields: waits for what it returns; None where the process failed, for who can do the work can say why it fails.
    """
    # A fresh one would import for half a second. Elsewhere than on Linux copies are not safe.
    context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args), daemon=True)
    process.start()
    sender.close()

    def result() -> T | None:
        try:
            done: T = receiver.recv()
            return done
        except (EOFError, OSError):  # it ended before its word, or in the middle of it
            return None

    try:
        yield result
    finally:
        receiver.close()
        process.terminate()
        process.join()


def _send(sender: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to both; the other one ends this
    with suppress(Exception):
        sender.send(work(*args))
