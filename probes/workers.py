"""Independent pieces of matrix work side by side, one per core. Offline alone: needs threadpoolctl."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController

T = TypeVar("T")


@contextmanager
def one_thread_each() -> Iterator[int]:
    """Within, a matrix product takes one thread; yields how many it might have taken.

    Small products gain nothing from a second thread, and a result has the same bits on any number of cores.
    """
    controller = _libraries()
    threads = [library.num_threads for library in controller.lib_controllers if library.user_api == "blas"]
    with controller.limit(limits=1, user_api="blas"):
        yield max(threads, default=1)


@cache
def _libraries() -> ThreadpoolController:
    """NumPy's are loaded by now; looking for them takes a millisecond."""
    return ThreadpoolController()


def for_each(
    work: Callable[[T], None], pieces: Sequence[T], threads: int, on_step: Callable[[float], None] = lambda share: None
) -> None:
    """Call `work` with every piece, on so many threads; the first error ends it.

    Args:
        on_step: called, by the caller's thread, with each piece's share of all.
    """
    with ThreadPoolExecutor(max(1, min(threads, len(pieces)))) as executor:
        try:
            for done in as_completed([executor.submit(work, piece) for piece in pieces]):
                done.result()
                on_step(1 / len(pieces))
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise
