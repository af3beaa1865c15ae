"""Calls in processes of their own, each under a time limit: what hangs or crashes costs its process, nothing else."""

import json
import multiprocessing
import resource
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

MEMORY_BYTES = 4 << 30


@dataclass(frozen=True)
class Worker:
    process: BaseProcess
    pipe: "Connection[Any, Any]"


def each(function: str, calls: Sequence[Sequence[Any]], workers: int, limit_s: float) -> Iterator[tuple[int, Any]]:
    """What a function returns for each call, as (index of the call, result) in the order in which they are done.

    The result of a call that takes longer than its limit, runs out of memory or kills its process is None.

    Args:
        function: "module:name" of a function whose arguments and results JSON can hold.
        calls: the arguments of each call.
        workers: processes at a time.
        limit_s: of one call, by the clock.
    """
    # A server that forks: workers start in milliseconds, and none inherits the threads of this process.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.partition(":")[0]])
    waiting = deque(range(len(calls)))
    idle: list[Worker] = []
    busy: dict[Connection[Any, Any], tuple[Worker, int]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < workers:
                worker = idle.pop() if idle else _start(context, function, limit_s)
                index = waiting.popleft()
                busy[worker.pipe] = worker, index
                worker.pipe.send_bytes(json.dumps(calls[index]).encode())
            for pipe in wait(list(busy)):
                assert isinstance(pipe, Connection)
                worker, index = busy.pop(pipe)
                try:
                    result = json.loads(pipe.recv_bytes())
                except (EOFError, ConnectionError):  # it has ended: too slow, or crashed
                    _end(worker)
                    yield index, None
                else:
                    idle.append(worker)
                    yield index, result
    finally:
        for worker in (*idle, *(worker for worker, _ in busy.values())):
            _end(worker)


def _start(context: Any, function: str, limit_s: float) -> Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, function, limit_s), daemon=True)
    process.start()
    theirs.close()
    return Worker(process, ours)


def _end(worker: Worker) -> None:
    worker.process.kill()
    worker.process.join()
    worker.pipe.close()


def _work(pipe: "Connection[Any, Any]", function: str, limit_s: float) -> None:
    """A worker's life: it ends with its pipe, or by the alarm that the kernel sends when a call takes too long."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
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
        signal.setitimer(signal.ITIMER_REAL, limit_s)
        result = call(*arguments)
        signal.setitimer(signal.ITIMER_REAL, 0)
        pipe.send_bytes(json.dumps(result).encode())
