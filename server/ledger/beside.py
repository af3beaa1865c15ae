"""Work that a second process does meanwhile.

with beside(work, 3) as result:
    mine = work(4)
    theirs = result()
"""

import multiprocessing
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

T = TypeVar("T")


@contextmanager
def beside(work: Callable[..., T], *args: Any) -> Iterator[Callable[[], T | None]]:
    """Start it in a fresh process, which imports the caller's main module anew.

    Yields: waits for what it returns; None where the process failed, for who can do the work can say why it fails.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, args), daemon=True)
    process.start()
    sender.close()

    def result() -> T | None:
        try:
            done: T = receiver.recv()
            return done
        except EOFError:
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
