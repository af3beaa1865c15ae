"""The engine on a GPU. Parity of every architecture there is part of `test_parity.py`."""

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from probes.artifact import Artifact, load_artifact
from probes.base import ProbeError
from probes.card import Pass, Recipe, Site
from probes.engine.base import EngineOptions, EngineUnavailableError, Prompt
from probes.engine.local import LocalEngine
from probes.engine.probe_model import ProbeModel
from probes.engine.process import ProcessEngine
from probes.engine.reading import Reading
from tests.support.probes import NANO_POOL

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
MB = 2**20


def nano() -> list[Artifact]:
    return [load_artifact(folder, verify=False) for folder in sorted((NANO_POOL / "probes").iterdir())]


def prompts(n: int, longest: int = 400) -> list[Prompt]:
    rng = np.random.default_rng(n)
    passes = len(LocalEngine(nano(), "cpu").passes)
    return [
        Prompt(tuple(tuple(rng.integers(3, 600, size=size).tolist()) for _ in range(passes)))
        for size in rng.integers(1, longest, size=n)
    ]


def test_the_nano_pools_probes_tell_the_same_as_on_a_cpu() -> None:
    some = prompts(200)
    on_gpu, on_cpu = (LocalEngine(nano(), device).score(some) for device in ("auto", "cpu"))
    np.testing.assert_allclose(on_gpu.success, on_cpu.success, atol=1e-5)
    np.testing.assert_allclose(on_gpu.activation_percentile, on_cpu.activation_percentile, atol=0.01)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """What a few prompts of the nano probe model need, and no more."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(160 * MB / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def test_a_micro_batch_without_room_is_halved_and_a_prompt_without_room_refused(little_memory: None) -> None:
    pass_ = Pass(probe_model=str(NANO_POOL / "nano-medium"), recipe=Recipe(chat_template_sha256=""))
    site = Site(layer=3, position=-1)
    model = ProbeModel(pass_, Reading((site,)), "cuda")
    rng = np.random.default_rng(0)
    some = [tuple(rng.integers(3, 600, size=2000).tolist()) for _ in range(8)]
    expected = ProbeModel(pass_, Reading((site,)), "cpu").read(some).activations[site]
    np.testing.assert_allclose(model.read(some).activations[site], expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ProbeError, match="no memory left for a prompt of 300000 tokens"):
        model.read([tuple(rng.integers(3, 600, size=300_000).tolist())])
    np.testing.assert_allclose(model.read(some[:1]).activations[site], expected[:1], rtol=1e-3, atol=1e-4)


async def test_an_engine_killed_there_comes_back(tmp_path: Path) -> None:
    some = prompts(50)
    engine = ProcessEngine(nano(), EngineOptions(device="cuda"))
    await engine.start()
    try:
        loop = asyncio.get_running_loop()
        before = await engine.score(some, loop.time() + 60)
        assert engine.pid is not None
        os.kill(engine.pid, signal.SIGKILL)
        async with asyncio.timeout(120):
            while True:
                try:
                    after = await engine.score(some, loop.time() + 60)
                    break
                except EngineUnavailableError:
                    await asyncio.sleep(0.2)
        np.testing.assert_allclose(after.success, before.success, atol=1e-5)
    finally:
        await engine.close()
