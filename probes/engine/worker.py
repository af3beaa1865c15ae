"""The engine process: loads probe models, then answers who joins at its socket.

python -m probes.engine.worker OPTIONS URL ARTIFACT [ARTIFACT ...]      (started by `probes.engine.process`)
"""

import ctypes
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import orjson
import uvloop

from probes.artifact import Artifact, distinct_passes
from probes.base import ProbeError
from probes.engine.address import bind
from probes.engine.base import BrokenEngineError, EngineOptions
from probes.engine.batching import BatchingEngine
from probes.engine.cores import cores
from probes.engine.local import LocalEngine
from probes.engine.served import decode_artifact, served_sha256
from probes.engine.server import EngineServer

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
GOING_S, GOING_STEPS = 0.5, 50
NICE = 5
SWITCH_S = 0.0005
UNUSED = ("sklearn", "scipy", "pandas", "pyarrow")
"""Transformers imports these wherever they are installed: 125 MB that no forward pass reads."""


def main(options: str, url: str, *arguments: str) -> None:
    parent = os.getppid()
    # Ctrl-C reaches the gateway, which ends this process when requests are done. The session stays the gateway's: Linux
    # may weigh processes by session first, and by how nice they are only within one.
    os.setpgid(0, 0)
    sys.setswitchinterval(SWITCH_S)
    signal.signal(signal.SIGTERM, lambda *_: _end(url, parent))
    die_with_parent(signal.SIGTERM)
    if os.getppid() != parent:
        _end(url, parent)
    logging.basicConfig(level="WARNING", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with private_stdout() as out:

        def tell(error: str | None) -> None:
            out.write(orjson.dumps(error) + b"\n")
            out.flush()

        try:
            artifacts = [decode_artifact(argument) for argument in arguments]
            with bind(url) as sock:
                uvloop.run(serve(artifacts, EngineOptions(**orjson.loads(options)), sock, ready=lambda: tell(None)))
        except ProbeError as error:
            tell(str(error))
        except BrokenEngineError:
            logger.exception("the engine ends")
            os._exit(1)  # its thread would be waited for


async def serve(
    artifacts: Sequence[Artifact],
    options: EngineOptions,
    sock: socket.socket,
    *,
    secret: bytes = b"",
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Load the probe models and answer gateways until cancelled.

    Args:
        sock: bound, not listening.
        secret: what gateways must know; empty: nothing.
        ready: called when they may join.

    Raises:
        ProbeError: a probe model cannot be loaded.
        BrokenEngineError: see there.
    """
    engine = BatchingEngine(
        lambda: _load(artifacts, options.device),
        options,
        on_batch=lambda report: server.batch(report),
        on_lookup=lambda found: server.lookup(found),
    )
    server = EngineServer(engine, len(distinct_passes(artifacts)), served_sha256(artifacts), secret)
    try:
        await engine.start()
        # What is loaded stays: to look through all of torch and Transformers for garbage takes as long as many prompts.
        gc.collect()
        gc.freeze()
        _let_others_go_first()
        await server.listen(sock)
        ready()
        await engine.finished()
    finally:
        await server.close()
        await engine.close()


def _load(artifacts: Sequence[Artifact], device: str) -> LocalEngine:
    if any(artifact.probe.site is not None for artifact in artifacts):
        sys.modules.update(dict.fromkeys(UNUSED))  # type: ignore[arg-type]  # None: "not installed"
        import torch

        torch.set_num_threads(cores())
    return LocalEngine(artifacts, device)


def _let_others_go_first() -> None:
    """Lower the priority of the threads that compute: where they take all cores, whoever answers requests goes first.
    Only once they are ready: on a busy machine, a start would take for ever."""
    if sys.platform == "linux":
        for thread in (int(task.name) for task in Path("/proc/self/task").iterdir()):
            if thread != threading.get_native_id():
                with suppress(ProcessLookupError):  # it has ended
                    os.setpriority(os.PRIO_PROCESS, thread, NICE)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask Linux for a signal when the parent ends, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def _end(url: str, parent: int) -> None:
    """End; the socket goes with a gateway that is gone."""
    for _ in range(GOING_STEPS):  # Linux says so while the gateway's last threads still end
        if os.getppid() != parent:
            break
        time.sleep(GOING_S / GOING_STEPS)
    if os.getppid() != parent:
        path = Path(urlsplit(url).path)
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()
    os._exit(128 + signal.SIGTERM)


def private_stdout() -> BinaryIO:
    """The real stdout; what libraries print goes to stderr instead."""
    private = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return private


if __name__ == "__main__":
    main(*sys.argv[1:])
