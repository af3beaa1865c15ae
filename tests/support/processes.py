"""The process table."""

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36


def descendants(pid: int) -> set[int]:
    """Children of a process, and theirs, and so on."""
    children: dict[int, list[int]] = {}
    for child in running():
        children.setdefault(_status(child)[1], []).append(child)
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        new = set(children.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


@contextmanager
def no_process_left() -> Iterator[None]:
    """Asserts that every process started inside has ended, orphans too."""
    # They become children of ours instead of the system's first process.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    before = descendants(os.getpid())
    yield
    left = {pid for pid in descendants(os.getpid()) - before if not _ended_or_of_postgresql(pid)}
    assert not left, [Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in left]


def _ended_or_of_postgresql(pid: int) -> bool:
    """Whether it has ended meanwhile, or serves a connection of the database that tests share, and ends by itself."""
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "postgres\n"
    except OSError:
        return True


def running() -> set[int]:
    """All processes but those that have ended and only wait to be read by their parent."""
    pids = {int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    return {pid for pid in pids if _status(pid)[0] not in ("Z", "X", "")}


def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """
    Raises:
        AssertionError: the condition did not come true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:.0f} s: {what}"
        time.sleep(0.1)


def _status(pid: int) -> tuple[str, int]:
    """(state, parent); empty for a process that has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])
