"""Whatever befalls the engine's process, who waits is told, and another one takes its place."""

import asyncio
import os
import re
import signal
from pathlib import Path

import anyio.to_thread
import numpy as np
import pytest

from probes.engine import process
from probes.engine.base import EngineUnavailableError, Prompt
from probes.engine.process import EngineProcess
from tests.support.engines import prompts, running_engine, soon
from tests.support.probes import artifact
from tests.support.processes import no_process_left, until

pytestmark = pytest.mark.anyio


async def test_a_process_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(process, "CHECK_S", 0.1)
    monkeypatch.setattr(process, "HUNG_S", 3.0)
    artifact(tmp_path / "a")
    async with running_engine([tmp_path / "a"]) as engine:
        before, pid = (await engine.score(prompts(1), soon())).success, engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(EngineUnavailableError, match="it is being restarted"):
            await engine.score(prompts(1, seed=1), soon(60))
        assert "the engine process hangs; killing it" in caplog.text
        await anyio.to_thread.run_sync(until, lambda: engine.ready, 60, "another process answers")
        assert engine.pid not in (None, pid)
        np.testing.assert_array_equal((await engine.score(prompts(1), soon())).success, before)


BREAKS = """
import torch
from probes.engine.probe_model import ProbeModel

forward = ProbeModel._forward

def broken(model, prompts):
    if any(600 in prompt for prompt in prompts):
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")
    return forward(model, prompts)

ProbeModel._forward = broken
"""


async def test_a_process_whose_gpu_fails_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of itself a process would fail with all that it is asked from then on."""
    (tmp_path / "sitecustomize.py").write_text(BREAKS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    artifact(tmp_path / "a")
    async with running_engine([tmp_path / "a"]) as engine:
        pid = engine.pid
        with pytest.raises(EngineUnavailableError, match="it is being restarted"):
            await engine.score([Prompt(((5, 600),))], soon(60))
        await anyio.to_thread.run_sync(until, lambda: engine.ready, 60, "another process answers")
        assert engine.pid not in (None, pid)
        assert np.isfinite((await engine.score(prompts(1), soon())).success).all()


@pytest.mark.parametrize(("steady_s", "waits"), [(60.0, "0.01 0.02 0.04 0.05 0.05"), (0.0, "0.01 0.01 0.01 0.01 0.01")])
async def test_an_engine_that_dies_again_and_again_is_restarted_less_and_less_often(
    steady_s: float, waits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless each has lived for long enough. The children are ones that load and end at once."""
    for name, value in {"FIRST_BACKOFF_S": 0.01, "MAX_BACKOFF_S": 0.05, "STEADY_S": steady_s}.items():
        monkeypatch.setattr(process, name, value)
    engine = EngineProcess([artifact(tmp_path / "a")])

    async def short_lived() -> asyncio.subprocess.Process:
        engine._process = await asyncio.create_subprocess_exec("true")
        return engine._process

    monkeypatch.setattr(engine, "_spawn", short_lived)
    await engine.start()
    try:
        await anyio.to_thread.run_sync(until, lambda: caplog.text.count("restarting it") >= 5, 30, "five have ended")
    finally:
        await engine.close()
    assert re.findall(r"ended with code 0; restarting it in (\S+) s", caplog.text)[:5] == waits.split()


async def test_a_restarted_process_that_never_loads_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first child ends at once; the second says nothing, for ever; the third stays."""
    for name, value in {"FIRST_BACKOFF_S": 0.01, "LOAD_S": 0.2}.items():
        monkeypatch.setattr(process, name, value)
    engine, third_is_there = EngineProcess([artifact(tmp_path / "a")]), asyncio.Event()
    commands = iter((["true"], ["sleep", "600"], ["sleep", "601"]))

    async def child() -> asyncio.subprocess.Process:
        command = next(commands)
        engine._process = await asyncio.create_subprocess_exec(*command)
        if command[-1] == "600":
            await asyncio.Event().wait()
        if command[-1] == "601":
            third_is_there.set()
        return engine._process

    monkeypatch.setattr(engine, "_spawn", child)
    with no_process_left():
        await engine.start()
        try:
            async with asyncio.timeout(30):
                await third_is_there.wait()
        finally:
            await engine.close()
    assert "cannot restart the engine: it takes too long to load" in caplog.text
