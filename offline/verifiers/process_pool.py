"""Calls in processes of their own, each under a time limit: what hangs or crashes costs its process, nothing else.

Not Python's `multiprocessing.Pool`, which waits for ever for a worker that was ended, nor its way to start processes,
which runs the caller's main module again.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import Any

logger = logging.getLogger(__name__)

MEMORY_BYTES = 4 << 30
PATIENCE = 10
KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")
"""Of the environment: a worker runs programs that nobody has read, and needs no key."""


@dataclass(frozen=True)
class Worker:
    process: "subprocess.Popen[bytes]"
    pipe: "Connection[Any, Any]"


def each(function: str, calls: Sequence[Sequence[Any]], workers: int, limit_s: float) -> Iterator[tuple[int, Any]]:
    """What a function returns for each call, as (index of the call, result) in the order in which they are done.

    The result of a call that takes longer than its limit, raises an exception or ends its process is None.

    Args:
        function: "module:name" of a function whose arguments and results JSON can hold.
        calls: the arguments of each call.
        workers: processes at a time.
        limit_s: CPU seconds of one call, so that a busy machine changes no result; by the clock, PATIENCE times as
            long.

    Raises:
        OSError: a call raised one: the machine is at fault, such as a full disk, and no result would be true.
    """
    waiting = deque(range(len(calls)))
    idle: list[Worker] = []
    busy: dict[Connection[Any, Any], tuple[Worker, int]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _start(function, limit_s)
                busy[worker.pipe] = worker, waiting.popleft()
                _send(worker, calls[busy[worker.pipe][1]])
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, index = busy.pop(pipe)
                try:
                    result, fault = json.loads(pipe.recv_bytes())
                except (EOFError, ConnectionError):  # it has ended: too slow, or crashed
                    _end(worker)
                    yield index, None
                else:
                    idle.append(worker)
                    if fault is not None:
                        raise OSError(fault)
                    yield index, result
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            _end(worker)


def _start(function: str, limit_s: float) -> Worker:
    ours, theirs = Pipe()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__, function, str(limit_s), str(theirs.fileno())],
        env={name: os.environ[name] for name in KEPT if name in os.environ} | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    return Worker(process, ours)


def _send(worker: Worker, arguments: Sequence[Any]) -> None:
    with suppress(ConnectionError):  # it has ended, as whoever reads from it will see
        worker.pipe.send_bytes(json.dumps(arguments).encode())


def _end(worker: Worker) -> None:
    worker.process.kill()
    worker.process.wait()
    worker.pipe.close()


def _work(function: str, limit_s: float, pipe: "Connection[Any, Any]") -> None:
    """A worker's life: it ends with its pipe, or by the kernel's alarm, which no call can hold up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module, _, name = function.partition(":")
    call = getattr(import_module(module), name)
    while True:
        try:
            arguments = json.loads(pipe.recv_bytes())
        except (EOFError, ConnectionError):
            return
        result = fault = None
        _limit(limit_s)
        try:
            result = call(*arguments)
        except OSError as error:
            fault = str(error)
        except Exception as error:
            logger.warning("%s failed: %s: %s", function, type(error).__name__, str(error)[:200])
        _limit(0)
        pipe.send_bytes(json.dumps([result, fault]).encode())


def _limit(limit_s: float) -> None:
    """Alarms that end this process, unless they are set anew."""
    signal.setitimer(signal.ITIMER_PROF, limit_s)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE * limit_s)


if __name__ == "__main__":
    _work(sys.argv[1], float(sys.argv[2]), Connection(int(sys.argv[3])))
