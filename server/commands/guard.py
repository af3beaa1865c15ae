"""A command that leaves no process behind, however it or its caller ends.

Between the caller and the command stands a guard: this file, run as a script in a session of its own, so that the
terminal's Ctrl-C does not reach the command first. The guard waits for its stdin to close, which the caller does to
stop the command and the kernel does when the caller is killed, or for the command to end. Whichever comes first, no
process of the session outlives the guard: no engine whose API server was killed either.

    guard = await Guard.start(["sleep", "1000"], os.environ, stderr=log)
    await guard.stop()
"""

import asyncio
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

GRACE_S = 8.0
"""From SIGTERM to SIGKILL."""
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


@dataclass(frozen=True)
class Guard:
    """The caller's half."""

    process: asyncio.subprocess.Process

    @classmethod
    async def start(
        cls, command: Sequence[str], env: Mapping[str, str], stderr: IO[bytes], stdout: IO[bytes] | int | None = None
    ) -> Self:
        """Start a command; stdout goes where stderr goes unless said otherwise (asyncio.subprocess.PIPE: to us)."""
        process = await asyncio.create_subprocess_exec(
            # Isolated and without site-packages: quick, and nothing in this folder can shadow the standard library.
            *(sys.executable, "-I", "-S", __file__, *command),
            env=env,
            stdin=asyncio.subprocess.PIPE,
            stdout=stderr if stdout is None else stdout,
            stderr=stderr,
            start_new_session=True,
        )
        return cls(process)

    async def wait(self) -> int:
        """Until the command and all that it started have ended; returns its exit code, 128 + n for signal n."""
        code = await self.process.wait()
        # Nothing is left, unless the guard was killed itself.
        kill_session(self.process.pid)
        return code

    async def stop(self) -> None:
        """SIGTERM to the command, after a grace period SIGKILL; returns when all has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            async with asyncio.timeout(GRACE_S + 2):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
        await self.wait()


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel for a signal when the parent ends. For a child that has just been forked."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def kill_session(session: int) -> None:
    """Kill every process of a session but the caller."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (pid := int(entry.name)) != os.getpid():
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(pid) == session:
                    os.kill(pid, signal.SIGKILL)


def main(command: list[str]) -> int:
    """The guard's half: runs the command until it ends or shall end, then ends all that is left of it."""
    # What loses its parent becomes ours, so that we can wait for it.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_parent)
    ended = os.pidfd_open(server.pid)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        select.select([sys.stdin, ended], [], [])
    if server.poll() is None:
        server.terminate()
        select.select([ended], [], [], GRACE_S)
    code = server.poll()
    with contextlib.suppress(ChildProcessError):
        while True:
            kill_session(os.getpid())
            os.wait()
    return 128 + signal.SIGKILL if code is None else code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
