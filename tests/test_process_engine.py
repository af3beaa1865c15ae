"""The engine in its own process: same numbers, bounded, and no trace left whatever dies."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio.to_thread
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from probes.artifact import load_artifact, save_artifact
from probes.base import ProbeError
from probes.engine.base import EngineUnavailableError, Prompt, Scores
from probes.engine.local import LocalEngine
from probes.engine.process import BatchReport, ProcessEngine
from probes.engine.wire import decode_artifact, encode_artifact
from probes.reference import load_probe
from probes.tfidf import Tfidf
from tests.support.examples import card_of
from tests.support.legacy import legacy_folder
from tests.support.probes import NANO_POOL, artifact
from tests.support.processes import no_process_left, running, until

SERVED = [NANO_POOL / "probes" / arm for arm in ("nano-small", "nano-medium", "nano-large")]
pytestmark = pytest.mark.anyio


def prompts(n: int, seed: int = 0) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return [Prompt((tuple(rng.integers(3, 600, size=size).tolist()),)) for size in rng.integers(10, 90, size=n)]


@asynccontextmanager
async def running_engine(folders: Sequence[Path], **options: Any) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine([load_probe(folder) for folder in folders], device="cpu", **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def soon(seconds: float = 30) -> float:
    return asyncio.get_running_loop().time() + seconds


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[ProcessEngine]:
    """One for all tests that leave it as it was."""
    async with running_engine(SERVED, queue_prompts=80, queue_tokens=3000) as engine:
        yield engine


@asynccontextmanager
async def stuck(engine: ProcessEngine) -> AsyncIterator[None]:
    """Inside, the child computes one micro-batch without end."""
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    first = asyncio.create_task(engine.score(prompts(1), soon()))
    await asyncio.sleep(0.05)  # taken from the queue
    yield
    os.kill(engine.pid, signal.SIGCONT)
    assert (await first).success.shape == (1, 3)


async def test_scores_equal_those_in_process(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    artifacts = [artifact(folder, "nano-medium", layer=3, seed=seed) for seed, folder in enumerate(folders)]
    reports: list[BatchReport] = []
    async with running_engine(folders, on_batch=reports.append) as engine:
        assert engine.ready
        calls = [engine.score(prompts(1 + n % 3, seed=n), soon()) for n in range(40)]
        answers = await asyncio.gather(*calls)
    expected = LocalEngine(artifacts, "cpu").score([prompt for n in range(40) for prompt in prompts(1 + n % 3, seed=n)])
    np.testing.assert_allclose(np.concatenate([answer.success for answer in answers]), expected.success, atol=1e-6)
    assert not engine.ready
    # What came while the first micro-batch was computed went together.
    assert len(reports) < 10
    assert sum(report.prompts for report in reports) == len(expected.success)
    assert all(report.tokens > report.padding_tokens >= 0 <= report.queue_s for report in reports)


async def test_more_than_the_queue_holds_is_refused_at_once(engine: ProcessEngine) -> None:
    short = [Prompt(((5, 6, 7),))]
    async with stuck(engine):
        others = asyncio.create_task(engine.score(short * 80, soon()))
        await asyncio.sleep(0.05)
        with pytest.raises(EngineUnavailableError, match="queue is full: 80 prompts with 240 tokens wait"):
            await engine.score(short, soon())
    assert (await others).success.shape == (80, 3)
    with pytest.raises(
        EngineUnavailableError, match="more than the engine's queue ever holds: 1 prompts with 3001 tokens"
    ):
        await engine.score([Prompt(((5,) * 3001,))], soon())


async def test_a_passed_deadline_is_an_error_and_is_not_computed(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: list[BatchReport] = []
    monkeypatch.setattr(engine, "_on_batch", reports.append)
    with pytest.raises(EngineUnavailableError, match="before the deadline"):
        await engine.score(prompts(1), soon(-1))
    async with stuck(engine):
        with pytest.raises(EngineUnavailableError, match="before the deadline"):
            await engine.score(prompts(7), soon(0.1))
    await engine.score(prompts(2), soon())
    assert [report.prompts for report in reports] == [1, 2]


async def test_a_prompt_that_fails_does_not_take_the_engine_down(engine: ProcessEngine) -> None:
    with pytest.raises(EngineUnavailableError, match="failed on these prompts"):
        await engine.score([Prompt(((10**6,),))], soon())
    assert (await engine.score(prompts(1), soon())).success.shape == (1, 3)


async def test_activations_that_are_no_numbers_fail_their_own_prompt_alone(tmp_path: Path) -> None:
    model = tmp_path / "nano-small"
    shutil.copytree(NANO_POOL / "nano-small", model)
    tensors = load_file(model / "model.safetensors")
    tensors["model.embed_tokens.weight"][2] = torch.inf  # in float16, a model that was made for more
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    options: dict[str, Any] = {"probe_models": {"nano-small": str(model)}, "allow": ["probe-model"]}
    folders = [artifact(tmp_path / name, seed=i).folder for i, name in enumerate("abc")]
    loaded = [load_probe(folder, **options) for folder in folders]
    good, bad = prompts(2), Prompt(((5, 2, 6),))
    local = LocalEngine(loaded, "cpu")
    expected = local.score(good).success
    for score in (local.score, local.raw):
        with pytest.raises(ProbeError, match="not finite numbers"):
            score([good[0], bad, good[1]])
    reports: list[BatchReport] = []
    engine = ProcessEngine(loaded, device="cpu", on_batch=reports.append)
    await engine.start()
    try:
        async with stuck(engine):
            waiting = [asyncio.create_task(engine.score([one], soon())) for one in (good[0], bad, good[1])]
            await asyncio.sleep(0.05)
        first, second, third = await asyncio.gather(*waiting, return_exceptions=True)
    finally:
        await engine.close()
    assert [report.prompts for report in reports] == [1, 3]
    assert isinstance(second, EngineUnavailableError)
    assert "not finite numbers: serve the probe model in float32" in str(second)
    assert isinstance(first, Scores)
    assert isinstance(third, Scores)
    np.testing.assert_allclose(np.concatenate([first.success, third.success]), expected, atol=1e-6)


async def test_a_killed_process_fails_who_waits_and_comes_back(engine: ProcessEngine) -> None:
    [before] = (await engine.score(prompts(1), soon())).success
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)  # so that the call is surely waiting
    waiting = asyncio.create_task(engine.score(prompts(50), soon()))
    await asyncio.sleep(0.05)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailableError, match="died; it is being restarted"):
        await waiting
    assert not engine.ready
    with pytest.raises(EngineUnavailableError, match="is not running; it is being restarted"):
        await engine.score(prompts(1), soon())
    await anyio.to_thread.run_sync(until, lambda: engine.ready, 60, "the engine comes back")
    np.testing.assert_array_equal((await engine.score(prompts(1), soon())).success, [before])


async def test_a_restarted_engine_serves_no_other_weights(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    artifact(tmp_path / "a", seed=1)
    old = (tmp_path / "a/probe.safetensors").read_bytes()
    artifact(tmp_path / "b", seed=2)
    async with running_engine([tmp_path / "a"]) as engine:
        before = (await engine.score(prompts(1), soon())).success
        (tmp_path / "a/probe.safetensors").write_bytes((tmp_path / "b/probe.safetensors").read_bytes())
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        said = f"{tmp_path / 'a'} has changed on disk: send SIGHUP to the gateway to take it, or restore it"
        await anyio.to_thread.run_sync(until, lambda: said in caplog.text, 60, "the engine refuses the new weights")
        with pytest.raises(EngineUnavailableError, match="is being restarted"):
            await engine.score(prompts(1), soon())
        (tmp_path / "a/probe.safetensors").write_bytes(old)
        await anyio.to_thread.run_sync(until, lambda: engine.ready, 60, "the engine comes back")
        np.testing.assert_array_equal((await engine.score(prompts(1), soon())).success, before)


@pytest.mark.parametrize("kind", ["ours", "text", "foreign", "legacy"])
def test_the_engine_gets_the_artifact_that_the_gateway_has(kind: str, tmp_path: Path) -> None:
    """However its pass is said: by its card, by the operator, or by the probe model's own configuration."""
    elsewhere: dict[str, Any] = {"probe_models": {"nano-small": f"{NANO_POOL / 'nano-small'}@main"}, "dtype": "float16"}
    match kind:
        case "ours":
            artifact(tmp_path / "a")
            sent = load_probe(tmp_path / "a", **elsewhere, verify=False)
        case "foreign":  # as one from the Hub is read
            artifact(tmp_path / "a")
            sent = load_artifact(tmp_path / "a", **elsewhere, verify=False, foreign=True)
            sent = replace(sent, revision="0" * 40, source="hf://acme/probes/a@0000000")
        case "text":
            probe = Tfidf(["a"], *np.ones((3, 1), dtype=np.float32))
            save_artifact(tmp_path / "a", card_of(probe), probe)
            sent = load_probe(tmp_path / "a")
        case _:
            sent = load_probe(legacy_folder(tmp_path / "a"), **elsewhere, verify=False)
    got = decode_artifact(encode_artifact(sent))
    assert (got.folder, got.pass_) == (sent.folder, sent.pass_)


async def test_what_cannot_be_loaded_is_told_at_start(tmp_path: Path) -> None:
    gone = artifact(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    with no_process_left(), pytest.raises(ProbeError, match="no probe folder at"):
        await ProcessEngine([gone]).start()


async def test_closing_fails_who_waits_and_leaves_no_process() -> None:
    with no_process_left():
        async with running_engine(SERVED) as engine:
            assert engine.pid is not None
            os.kill(engine.pid, signal.SIGSTOP)
            waiting = asyncio.create_task(engine.score(prompts(3), soon()))
            await asyncio.sleep(0.05)
        with pytest.raises(EngineUnavailableError, match="closed"):
            await waiting


GATEWAY = """
import asyncio, sys
from pathlib import Path
from probes.engine.base import Prompt
from probes.engine.process import ProcessEngine
from probes.reference import load_probe

def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6

async def main():
    engine = ProcessEngine([load_probe(folder) for folder in sys.argv[1:]], device="cpu")
    await engine.start()
    await engine.score([Prompt(((5,) * 60,))] * 64, asyncio.get_running_loop().time() + 30)
    assert not {"torch", "transformers", "scipy", "sklearn"} & set(sys.modules)
    print(engine.pid, resident_mb("self"), resident_mb(engine.pid), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_engine_is_small_and_dies_with_a_killed_gateway() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, *map(str, SERVED)], stdout=subprocess.PIPE, text=True
    ) as gateway:
        try:
            assert gateway.stdout is not None
            pid, parent_mb, child_mb = map(float, gateway.stdout.readline().split())
            assert int(pid) in running()
        finally:
            gateway.kill()
    until(lambda: int(pid) not in running(), 10, "the engine's process ends with its gateway's")
    # The gateway's own modules take some 60 MB more; together they stay under 600.
    assert parent_mb + child_mb < 520
