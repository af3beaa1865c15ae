"""Several vLLM servers without a GPU, forked from one process that has imported vLLM once.

Importing vLLM is nearly all of a small server's start, so on few cores several are up in a fraction of the time, and of
the memory. The one private name of vLLM that is needed is `vllm.v1.engine.utils.get_mp_context`: on a CPU vLLM starts
each engine as a new interpreter, which would import everything again.

    family = await Family.start(servers, log_file)
    await family.server("nano-small").wait()
"""

import asyncio
import gc
import json
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import IO, Any, Self

from server.commands.guard import Guard, die_with_parent
from server.launch.vllm_server import API_SERVER, VllmServer, is_cpu_build


def can_fork(servers: Sequence[VllmServer]) -> bool:
    """Whether there is something to share: a GPU's context cannot be forked, and one environment serves all."""
    return len(servers) > 1 and is_cpu_build() and all(server.env == servers[0].env for server in servers)


@dataclass(frozen=True)
class Family:
    """The caller's half: one guarded process, and the servers that are its children."""

    guard: Guard
    exit_codes: dict[str, asyncio.Future[int]]
    reader: asyncio.Task[None]

    @classmethod
    async def start(cls, servers: Sequence[VllmServer], stderr: IO[bytes]) -> Self:
        specs = [{"name": s.name, "argv": s.argv, "log": str(s.log)} for s in servers]
        command = (sys.executable, "-P", "-m", "server.launch.vllm_fork", json.dumps(specs))
        guard = await Guard.start(command, servers[0].env, stderr, stdout=asyncio.subprocess.PIPE)
        exit_codes = {server.name: asyncio.get_running_loop().create_future() for server in servers}
        return cls(guard, exit_codes, asyncio.create_task(_read(guard, exit_codes)))

    def server(self, name: str) -> "ForkedServer":
        return ForkedServer(self, name)


@dataclass(frozen=True)
class ForkedServer:
    """What `Guard` is to a server that was started alone."""

    family: Family
    name: str

    async def wait(self) -> int:
        """Until the server has ended; returns its exit code."""
        return await asyncio.shield(self.family.exit_codes[self.name])

    async def stop(self) -> None:
        """Stop the whole family."""
        await self.family.guard.stop()


async def _read(guard: Guard, exit_codes: dict[str, asyncio.Future[int]]) -> None:
    """Learn from the parent of all servers how each one ended."""
    assert guard.process.stdout is not None
    async for line in guard.process.stdout:
        name, code = line.decode().split()
        exit_codes[name].set_result(int(code))
    code_of_all = await guard.wait()
    for exit_code in exit_codes.values():
        if not exit_code.done():
            exit_code.set_result(code_of_all)


def main(servers: list[dict[str, Any]]) -> None:
    """The forking process: prints "NAME EXIT_CODE" for each server that ends."""
    _import_vllm()
    # Whoever is killed takes what it forked along: a server its engine, this process its servers.
    os.register_at_fork(after_in_child=die_with_parent)
    gc.freeze()
    names = {_fork(server): server["name"] for server in servers}

    def forward(number: int, _: FrameType | None) -> None:
        for pid in names:
            os.kill(pid, number)

    signal.signal(signal.SIGTERM, forward)
    while names:
        pid, status = os.wait()
        print(names.pop(pid), os.waitstatus_to_exitcode(status), flush=True)


def _import_vllm() -> None:
    """Import what a server and its engine import, and have engines forked instead of spawned."""
    for module in ("vllm.entrypoints.launchers.api_server.entry", "vllm.v1.engine.core"):
        import_module(module)
    engine_utils: Any = import_module("vllm.v1.engine.utils")
    engine_utils.get_mp_context = lambda: multiprocessing.get_context("fork")


def _fork(server: dict[str, Any]) -> int:
    """Start a server as a child; returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    with Path(server["log"]).open("ab") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    sys.argv = [API_SERVER, *server["argv"]]
    runpy.run_module(API_SERVER, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
