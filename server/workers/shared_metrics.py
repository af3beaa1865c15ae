"""The metrics of several workers as one: each writes to files of its own in one folder; who is scraped adds them up.

A worker is known by its slot, which its successor takes over: so counters go on after a death, and files stay few.
Source: prometheus_client's multiprocess mode, https://prometheus.github.io/client_python/multiprocess/
"""

import fcntl
import os
import shutil
import struct
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from prometheus_client import multiprocess, values
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from probes.base import FloatArray

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""The library's name of the variable that says where the files are."""
TRIES = 3
PREFIX = "pika-metrics-"
UNLOCKED_S = 60.0
"""A folder is surely locked by then, if its parent lives."""
RECENT_PROMPTS = 2000
"""Scored prompts that the drift gauge looks at."""


@dataclass(frozen=True)
class Shared:
    """Where one of several workers counts."""

    folder: Path
    slot: int
    workers: int

    def begin(self) -> None:
        """Have all series that are made from now on counted in this worker's files."""
        os.environ[FOLDER] = str(self.folder)
        values.ValueClass = values.MultiProcessValue(lambda: self.slot)  # type: ignore[no-untyped-call]


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for workers' files, locked by their parent: by that one knows folders whose parent was killed."""
    for old in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if time.time() - old.stat().st_mtime > UNLOCKED_S and not _is_locked(old):
                shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as folder:
        locked = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(locked, fcntl.LOCK_EX)
            yield Path(folder)
        finally:
            os.close(locked)


def _is_locked(folder: Path) -> bool:
    tried = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(tried)
    return False


def forget_gauges(folder: Path, slot: int) -> None:
    """A worker has died: what it had in flight is no more."""
    multiprocess.mark_process_dead(slot, str(folder))  # type: ignore[no-untyped-call]  # the library leaves it untyped


class Sums(Collector):
    """Counters, histograms and gauges of all workers, added up when scraped."""

    def __init__(self, folder: Path) -> None:
        self._files = multiprocess.MultiProcessCollector(None, str(folder))  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        for _ in range(TRIES - 1):
            with suppress(struct.error, ValueError, RuntimeError):  # a file that a starting worker only just makes
                return self._collect()
        return self._collect()

    def _collect(self) -> Iterable[Metric]:
        found: Iterable[Metric] = self._files.collect()  # type: ignore[no-untyped-call]
        return found


class Recent:
    """The latest `RECENT_PROMPTS` numbers of a gateway, whichever worker saw them."""

    def __init__(self, shared: Shared | None) -> None:
        self._size = RECENT_PROMPTS if shared is None else RECENT_PROMPTS // shared.workers
        self._folder = None if shared is None else shared.folder
        self._own: FloatArray = np.full(self._size, np.nan)
        self._next = 0
        if shared is not None:
            path = shared.folder / f"recent-{shared.slot}.f8"
            if not path.exists():
                self._own.tofile(path)
            self._own = np.asarray(np.memmap(path, np.float64, "r+", shape=(self._size,)))

    def add(self, value: float) -> None:
        self._own[self._next] = value
        self._next = (self._next + 1) % self._size

    def values(self) -> FloatArray:
        """All of them, (n,)."""
        every: FloatArray = self._own
        if self._folder is not None:
            every = np.concatenate([np.fromfile(file) for file in self._folder.glob("recent-*.f8")])
        known: FloatArray = every[~np.isnan(every)]
        return known
