"""A harvest in a process of its own, which may kill itself on the way."""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

from offline import activations
from probes.card import Site
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from probes.prompt import new_pass

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.support.harvest"])  # torch is loaded once
READING = Reading((Site(layer=1, position=-2),), (0, 1, 2), next_token=True)


def harvest(model: Path, cache: Path, n: int, batches: int = 10**6) -> tuple[int | None, int, int]:
    """
    Args:
        batches: after so many it kills itself.

    Returns: exit code, batches read and KiB of memory taken; these are 0 where it was killed.
    """
    found: SimpleQueue[tuple[int, int]] = FORKS.SimpleQueue()
    process = FORKS.Process(target=_harvest, args=(model, cache, n, batches, found))
    process.start()
    process.join()
    return process.exitcode, *((0, 0) if found.empty() else found.get())


def _harvest(model: Path, cache: Path, n: int, batches: int, found: "SimpleQueue[tuple[int, int]]") -> None:
    activations.SYNC_S = 0
    forward, calls = ProbeModel._forward, 0

    def counted(self: ProbeModel, prompts: Sequence[Sequence[int]]) -> Any:
        nonlocal calls
        calls += 1
        if calls > batches:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, prompts)

    ProbeModel._forward = counted  # type: ignore[method-assign]  # counted on the way
    prompts = [[5, 6, 7 + i % 50] * (1 + i % 8) for i in range(n)]
    before = _memory("VmRSS")
    activations.harvest(new_pass(str(model)), prompts, READING, "cpu", cache)
    found.put((calls, _memory("VmHWM") - before))


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))
