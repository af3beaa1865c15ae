"""What stays of what is over, until Python looks for garbage: seldom, and then everybody waits."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_collector() -> Iterator[None]:
    """Inside, Python does not look for it."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def alive(*kinds: type) -> Counter[type]:
    """How many there are of each."""
    return Counter(type(one) for one in gc.get_objects() if type(one) in kinds)
