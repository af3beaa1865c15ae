"""However a guarded command or its caller ends, no process is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from server.commands.guard import Guard
from tests.support.processes import running, until

FAMILY = "sleep 1000 & sleep 1000 & echo $$ $(jobs -p) > {pids}.new; mv {pids}.new {pids}; {then}"
"""A command with two children, which are no use without it but do not end with it."""

CALLER = """
import asyncio, os, sys
from server.commands.guard import Guard
async def main():
    with open(os.devnull, "wb") as log:
        await Guard.start(["sh", "-c", sys.argv[1]], os.environ, log)
        await asyncio.sleep(1000)
asyncio.run(main())
"""


def family(tmp_path: Path, then: str = "wait") -> str:
    return FAMILY.format(pids=tmp_path / "pids", then=then)


def pids(tmp_path: Path) -> set[int]:
    until((tmp_path / "pids").exists, 20, "the command runs")
    return set(map(int, (tmp_path / "pids").read_text().split()))


async def start(command: str, tmp_path: Path) -> Guard:
    with (tmp_path / "log").open("wb") as log:
        return await Guard.start(["sh", "-c", command], os.environ, log)


async def test_stop_ends_all(tmp_path: Path) -> None:
    guard = await start(family(tmp_path), tmp_path)
    started = pids(tmp_path)
    assert started <= running()
    await guard.stop()
    assert not started & running()


async def test_a_command_that_will_not_stop_is_killed(tmp_path: Path) -> None:
    guard = await start(family(tmp_path, "trap '' TERM; while true; do wait; done"), tmp_path)
    started = pids(tmp_path)
    await guard.stop()
    assert not started & running()


@pytest.mark.parametrize(("then", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
async def test_what_a_command_leaves_behind_ends_with_it(tmp_path: Path, then: str, code: int) -> None:
    guard = await start(family(tmp_path, then), tmp_path)
    assert await guard.wait() == code
    assert not pids(tmp_path) & running()
    await guard.stop()  # harmless


async def test_a_killed_guard_takes_all_with_it(tmp_path: Path) -> None:
    guard = await start(family(tmp_path), tmp_path)
    started = pids(tmp_path)
    guard.process.kill()
    await guard.wait()
    until(lambda: not started & running(), 5, "the command and its children end")


def test_a_killed_caller_takes_all_with_it(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", CALLER, family(tmp_path)]) as caller:
        started = pids(tmp_path)
        caller.send_signal(signal.SIGKILL)
    until(lambda: not started & running(), 15, "the command and its children end")
