"""A worker as its parent sees it, where the worker is no gateway but what a test needs."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from server.workers import slot
from server.workers.slot import Slot, WorkerError

pytestmark = pytest.mark.anyio

DOES_AS_TOLD = """
import sys
for line in sys.stdin:
    if "fail" in line: print('{"error": "no"}', flush=True)
    elif "end" in line: sys.exit(3)
    elif "ignore" in line: pass
    elif "take" in line: print('{"done": true}\\n{"left": 1}', flush=True)
    else: print('{"done": true}', flush=True)
"""


@asynccontextmanager
async def running() -> AsyncIterator[Slot]:
    one = Slot(0, [sys.executable, "-c", DOES_AS_TOLD], descriptor=2)
    await one.start(1, {"do": "start"})
    try:
        yield one
    finally:
        await one.stop(5)
        assert not one.alive


async def test_what_a_worker_cannot_do_it_says() -> None:
    async with running() as one:
        with pytest.raises(WorkerError, match="no"):
            await one.ask({"do": "fail"})
        await one.ask({"do": "something"})
        await one.take(2, leaves=1)
        async with asyncio.timeout(10):
            await one.until_left(1)


async def test_one_that_ends_over_it_leaves_nobody_waiting() -> None:
    async with running() as one:
        waiting = asyncio.create_task(one.until_left(1))
        with pytest.raises(WorkerError, match="worker 0 ended with code 3"):
            await one.ask({"do": "end"})
        async with asyncio.timeout(10):
            await waiting
        await one.start(2, {"do": "start"})
        await one.ask({"do": "something"})


async def test_one_that_does_not_answer_is_killed() -> None:
    async with running() as one:
        with pytest.raises(WorkerError, match=r"did not do as told within 0\.1 s"):
            await one.ask({"do": "ignore"}, within_s=0.1)
        assert not one.alive


async def test_one_that_hangs_is_killed_and_one_that_works_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "CHECK_S", 0.05)
    async with running() as one:
        free = asyncio.Lock()
        ending = asyncio.create_task(one.wait(free))
        while not free.locked():  # noqa: ASYNC110  # it is being asked
            await asyncio.sleep(0)
        while free.locked():  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert one.alive
        monkeypatch.setattr(slot, "HUNG_S", 0.2)
        assert one._process is not None
        one._process.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(20):
            assert await ending == -signal.SIGKILL
