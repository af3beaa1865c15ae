"""Runs a program that nobody has read in a process of its own, confined (`confine.py`), and reads what it printed.

The process has a fresh folder, an environment without this one's variables, a time limit by CPU and by the clock, and
ends with all of its group.
"""

import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEMORY_BYTES = 2 << 30
FILE_BYTES = 16 << 20
FOLDER_BYTES = 256 << 20
"""All files of its folder together."""
WAITING_S = 10.0
"""How long a program may wait, by the clock, beside four times its CPU limit."""
CHECK_MS = 200
"""How often the folder's size is looked at."""
CHILD = Path(__file__).with_name("code_child.py")


@dataclass(frozen=True)
class Finished:
    exit_code: int
    """Negative: the signal that ended it."""
    output: str
    results: list[str]
    """Lines of JSON: what each call returned."""
    missing: str
    """What this kernel could not confine; empty where it could all."""


def run(program: str, stdin: str, cpu_s: int, calls: bool = False) -> Finished:
    """Run a Python program to its end, or until it breaks a limit.

    Args:
        stdin: the program's standard input, or what to call of it (see `code_child.py`).
        cpu_s: CPU seconds; by the clock it may take some more, for on a busy machine it waits.
        calls: `stdin` says what to call.

    Raises:
        OSError: there is no room for its files, or no process can be started.
    """
    with tempfile.TemporaryDirectory(prefix="pika-", ignore_cleanup_errors=True) as name:
        folder = Path(name) / "own"
        folder.mkdir()
        (folder / "program.py").write_text(program, encoding="utf-8", errors="replace")
        files = {kind: Path(name) / kind for kind in ("stdin", "output", "results")}
        files["stdin"].write_text(stdin, encoding="utf-8", errors="replace")
        with files["stdin"].open("rb") as source, files["output"].open("wb") as out, files["results"].open("wb") as end:
            paths = sysconfig.get_paths()
            packages = sorted({paths["purelib"], paths["platlib"]})
            job = {
                "limits": {
                    "folder": str(folder),
                    "readable": sorted({sys.base_prefix, sys.prefix, *packages}),
                    "memory_bytes": MEMORY_BYTES,
                    "cpu_s": cpu_s,
                    "file_bytes": FILE_BYTES,
                },
                "packages": packages,
                "results": end.fileno(),
                "calls": calls,
            }
            with _started(job, folder, source.fileno(), out.fileno()) as process:
                _wait(process.pid, folder, 4 * cpu_s + WAITING_S)
        results = _text(files["results"]).splitlines()
        return Finished(process.returncode, _text(files["output"]), results[1:], missing="".join(results[:1]))


@contextmanager
def _started(job: dict[str, Any], folder: Path, stdin: int, stdout: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-X", "utf8", str(CHILD), json.dumps(job)],
        cwd=folder,
        env={"HOME": str(folder), "TMPDIR": str(folder), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        stdin=stdin,
        stdout=stdout,
        stderr=subprocess.DEVNULL,
        pass_fds=[job["results"]],
        start_new_session=True,
    )
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        process.wait()


def _wait(pid: int, folder: Path, limit_s: float) -> None:
    """Until the process ends, its time is up or its folder full."""
    deadline = time.monotonic() + limit_s
    ended = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    try:
        while time.monotonic() < deadline and _size(folder) <= FOLDER_BYTES:
            if poll.poll(CHECK_MS):
                return
    finally:
        os.close(ended)


def _size(folder: Path) -> int:
    total = 0
    for entry in os.scandir(folder):
        try:
            total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:  # the program has just removed it
            continue
    return total


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")
