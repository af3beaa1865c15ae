"""Servers that a measurement starts, and what they use: CPU seconds and memory, from /proc."""

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import httpx

from offline.child import environment
from probes.engine.worker import die_with_parent

HOST = "127.0.0.1"
START_TIMEOUT_S, STOP_TIMEOUT_S = 90.0, 15.0
POLL_S = 0.1
LAST_BYTES = 3000
FILES = 20_000
"""Open files that thousands of streams need."""
ENGINE = b"probes.engine.worker"


class ServerError(Exception):
    """A server does not run; the message shows its last lines."""


@dataclass(frozen=True)
class Server:
    """A running server, all of its processes."""

    pid: int
    port: int

    def processes(self) -> list[int]:
        """Its process and all that descend from it, but for the engine, whose work is measured elsewhere."""
        children: dict[int, list[int]] = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and (fields := _stat(int(entry.name))):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
        found, unseen = [], [self.pid]
        while unseen:
            pid = unseen.pop()
            if pid == self.pid or ENGINE not in _read(pid, "cmdline"):
                found.append(pid)
                unseen += children.get(pid, [])
        return found

    def cpu_s(self) -> float:
        """CPU seconds so far."""
        return sum(cpu_s(pid) for pid in self.processes())

    def resident_mb(self) -> float:
        """Memory now."""
        return sum(resident_mb(pid) for pid in self.processes())

    def open_files(self) -> int:
        """File descriptors now."""
        return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in self.processes())  # noqa: PTH208 - counted, not read


@contextmanager
def running(
    command: Sequence[str],
    port: int,
    path: str,
    log: Path,
    env: dict[str, str] | None = None,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[Server]:
    """A server for as long as it is used; it ends with us, however we end.

    Args:
        path: answers with a success once the server is ready.
        log: where what it writes goes.

    Raises:
        ServerError: it did not start.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment(), **(env or {})},
            preexec_fn=_prepare,
        )
    try:
        _wait_ready(process, f"http://{HOST}:{port}{path}", log, start_timeout_s)
        yield Server(process.pid, port)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def one_process() -> Iterator[ProcessPoolExecutor]:
    """For work apart from this process's own; it ends with us, however we end. A terminal's Ctrl-C is for us alone."""
    context, parent = get_context("spawn"), os.getpid()
    with ProcessPoolExecutor(1, mp_context=context, initializer=_end_with, initargs=(parent,)) as executor:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # the child inherits that
        try:
            pid = executor.submit(os.getpid).result()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        try:
            yield executor
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)  # what it still does would be waited for
            raise


def _end_with(parent: int) -> None:
    die_with_parent()
    if os.getppid() != parent:  # it ended before that
        os._exit(1)


def free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def more_files() -> None:
    """Let this process have as many open files as thousands of streams need, or as it may."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if hard == resource.RLIM_INFINITY else min(FILES, hard), hard))


def _prepare() -> None:
    die_with_parent()
    more_files()


def _wait_ready(process: "subprocess.Popen[bytes]", url: str, log: Path, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    with httpx.Client(trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
    said = log.read_bytes()[-LAST_BYTES:].decode(errors="replace")
    raise ServerError(f"{log.stem} did not start (exit code {process.poll()}); the end of its log:\n{said}")


def cpu_s(pid: int) -> float:
    """CPU seconds of one process so far; 0 where it has ended."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def resident_mb(pid: int) -> float:
    """Memory of one process now; 0 where it has ended."""
    words = _read(pid, "statm").split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if words else 0.0


def _stat(pid: int) -> list[str]:
    """Fields from the process's state on; empty where it has ended."""
    return _read(pid, "stat").decode(errors="replace").rpartition(")")[2].split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
