"""The engine in its own process: same numbers, bounded, and no trace left whatever dies."""

import asyncio
import os
import platform
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
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
from probes.engine import process
from probes.engine.base import EngineOptions, EngineUnavailableError, Prompt, Scores
from probes.engine.local import LocalEngine
from probes.engine.process import ProcessEngine
from probes.engine.served import decode_artifact, encode_artifact
from probes.engine.server import REPORT_S
from probes.engine.wire import Report
from probes.reference import load_probe
from probes.tfidf import Tfidf
from tests.support.engines import prompts, running_engine, soon
from tests.support.examples import card_of
from tests.support.legacy import legacy_folder
from tests.support.probes import NANO_POOL, artifact
from tests.support.processes import no_process_left, running, until

SERVED = [NANO_POOL / "probes" / arm for arm in ("nano-small", "nano-medium", "nano-large")]
pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
async def engine(anyio_backend: str) -> AsyncIterator[ProcessEngine]:
    """One for all tests that leave it as it was."""
    async with running_engine(SERVED) as engine:
        yield engine


async def test_scores_equal_those_in_process(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    artifacts = [artifact(folder, "nano-medium", layer=3, seed=seed) for seed, folder in enumerate(folders)]
    reports: list[Report] = []
    async with running_engine(folders, on_report=reports.append) as engine:
        assert engine.ready
        assert stat.S_IMODE(Path(engine.url.removeprefix("unix://")).parent.stat().st_mode) == 0o700
        calls = [engine.score(prompts(1 + n % 3, seed=n), soon()) for n in range(40)]
        answers = await asyncio.gather(*calls)
        await asyncio.sleep(1.5 * REPORT_S)
    expected = LocalEngine(artifacts, "cpu").score([prompt for n in range(40) for prompt in prompts(1 + n % 3, seed=n)])
    np.testing.assert_allclose(np.concatenate([answer.success for answer in answers]), expected.success, atol=1e-6)
    assert not engine.ready
    assert not Path(engine.url.removeprefix("unix://")).parent.exists()
    batches = [batch for report in reports for batch in report.batches]
    assert sum(batch.prompts for batch in batches) == len(expected.success)
    assert all(batch.tokens > 0 and batch.queue_s >= 0 for batch in batches)
    assert not any(batch.padding_tokens for batch in batches), "prompts are packed"


async def test_beginnings_that_are_reused_count_as_that_and_not_as_computed(tmp_path: Path) -> None:
    artifact(tmp_path / "a")
    system, questions = prompts(1)[0].token_ids[0] * 3, prompts(6, seed=1)
    asked = [Prompt((system[:100] + question.token_ids[0],)) for question in questions]
    reports: list[Report] = []
    async with running_engine([tmp_path / "a"], on_report=reports.append) as engine:
        for prompt in asked:
            await engine.score([prompt], soon())
        await asyncio.sleep(1.5 * REPORT_S)
    batches = [batch for report in reports for batch in report.batches]
    # The second tells that they are shared, and computes for all who come what is.
    assert [batch.reused_tokens for batch in batches[:2]] == [0, 0]
    assert all(batch.reused_tokens >= 100 for batch in batches[2:])
    assert [batch.tokens + batch.reused_tokens for batch in batches] == [prompt.tokens for prompt in asked]


@pytest.mark.parametrize("bad", [(10**6,), (5, -1), ()])
async def test_a_prompt_that_cannot_be_computed_does_not_take_the_engine_down(
    bad: tuple[int, ...], engine: ProcessEngine
) -> None:
    waiting = [engine.score([one], soon()) for one in (*prompts(3), Prompt((bad,)), *prompts(3, seed=1))]
    answers = await asyncio.gather(*waiting, return_exceptions=True)
    assert [isinstance(answer, Scores) for answer in answers] == [True] * 3 + [False] + [True] * 3
    assert isinstance(answers[3], EngineUnavailableError)
    assert str(answers[3]).startswith(("the engine refuses this prompt:", "the engine failed on this prompt:"))


async def test_one_token_is_a_prompt(engine: ProcessEngine) -> None:
    scores = await engine.score([Prompt(((5,),))], soon())
    expected = LocalEngine([load_probe(folder) for folder in SERVED], "cpu").score([Prompt(((5,),))])
    np.testing.assert_allclose(scores.success, expected.success, atol=1e-6)


@contextmanager
def changed_weights(folder: Path) -> Iterator[tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """The tensors of a copy of nano-small, to be changed inside, and how an artifact is loaded that shall read it."""
    model = folder / "nano-small"
    shutil.copytree(NANO_POOL / "nano-small", model)
    tensors = load_file(model / "model.safetensors")
    yield tensors, {"probe_models": {"nano-small": str(model)}, "allow": ["probe-model"]}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("weight", [torch.inf, torch.nan])  # infinite in float16, of a model that was made for more
async def test_activations_that_are_no_numbers_fail_their_own_prompt_alone(weight: float, tmp_path: Path) -> None:
    with changed_weights(tmp_path) as (tensors, options):
        tensors["model.embed_tokens.weight"][2] = weight
    folders = [artifact(tmp_path / name, seed=i).folder for i, name in enumerate("abc")]
    loaded = [load_probe(folder, **options) for folder in folders]
    good, bad = prompts(2), Prompt(((5, 2, 6),))
    local = LocalEngine(loaded, "cpu")
    expected = local.score(good).success
    for score in (local.score, local.raw):
        with pytest.raises(ProbeError, match="not finite numbers"):
            score([good[0], bad, good[1]])
    engine = ProcessEngine(loaded, EngineOptions(device="cpu"))
    await engine.start()
    try:
        waiting = [engine.score([one], soon()) for one in (good[0], bad, good[1])]
        first, second, third = await asyncio.gather(*waiting, return_exceptions=True)
        np.testing.assert_allclose((await engine.score(good, soon())).success, expected, atol=1e-6)
    finally:
        await engine.close()
    assert isinstance(second, EngineUnavailableError)
    said = "not finite numbers: serve the probe model in float32 or bfloat16; where it is, its weights have NaN"
    assert said in str(second)
    assert isinstance(first, Scores)
    assert isinstance(third, Scores)
    np.testing.assert_allclose(np.concatenate([first.success, third.success]), expected, atol=1e-6)


async def test_a_process_killed_under_load_fails_who_waits_and_comes_back(engine: ProcessEngine) -> None:
    known = prompts(1, seed=99)
    [before] = (await engine.score(known, soon())).success
    outcomes: list[str] = []

    async def keep_asking(client: int) -> None:
        for i in range(10_000):
            if "back" in outcomes:
                return
            try:
                await engine.score(prompts(1, seed=100 * client + i), soon(5))
                outcomes.append("back" if "gone" in outcomes else "scored")
            except EngineUnavailableError as error:
                outcomes.append("gone" if "is not there; it is being restarted" in str(error) else str(error))
                await asyncio.sleep(0.05)

    clients = [asyncio.create_task(keep_asking(client)) for client in range(8)]
    while outcomes.count("scored") < 20:  # noqa: ASYNC110  # only the clients know
        await asyncio.sleep(0.01)
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        await asyncio.gather(*clients)
    assert outcomes.count("gone") >= 8
    assert set(outcomes) == {"scored", "gone", "back"}
    assert engine.pid not in (None, pid)
    np.testing.assert_array_equal((await engine.score(known, soon())).success, [before])


async def test_a_process_that_hangs_is_told_from_one_that_computes(engine: ProcessEngine) -> None:
    pid = engine.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(EngineUnavailableError, match="before the deadline"):
        await engine.score(prompts(1, seed=7), soon(0.1))
    assert not await process._speaks(engine._socket, 0.1)
    os.kill(pid, signal.SIGCONT)
    assert await process._speaks(engine._socket, 30)
    assert engine.pid == pid


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
        with pytest.raises(EngineUnavailableError, match="it is being restarted"):
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


async def test_a_checkpoint_that_lacks_a_tensor_is_told_at_start(tmp_path: Path) -> None:
    with changed_weights(tmp_path) as (tensors, options):
        del tensors["model.layers.0.mlp.up_proj.weight"]
    loaded = load_probe(artifact(tmp_path / "a").folder, **options)
    said = r"nano-small lacks tensors, layers\.0\.mlp\.up_proj\.weight among them: get its files again"
    with no_process_left(), pytest.raises(ProbeError, match=said):
        await ProcessEngine([loaded]).start()


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
from probes.engine.base import EngineOptions, Prompt
from probes.engine.process import ProcessEngine
from probes.reference import load_probe

def resident_mb(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 1e6

async def main():
    engine = ProcessEngine([load_probe(folder) for folder in sys.argv[1:]], EngineOptions(device="cpu"))
    await engine.start()
    await engine.score([Prompt(((5,) * 60,))] * 64, asyncio.get_running_loop().time() + 30)
    assert not {"torch", "transformers", "scipy", "sklearn"} & set(sys.modules)
    print(engine.pid, resident_mb("self"), resident_mb(engine.pid), engine.url.removeprefix("unix://"), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_the_engine_is_small_and_dies_with_a_killed_gateway() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", GATEWAY, *map(str, SERVED)], stdout=subprocess.PIPE, text=True
    ) as gateway:
        try:
            assert gateway.stdout is not None
            *figures, socket = gateway.stdout.readline().split()
            pid, parent_mb, child_mb = map(float, figures)
            assert int(pid) in running()
            assert Path(socket).is_socket()
        finally:
            gateway.kill()
    until(lambda: int(pid) not in running(), 10, "the engine's process ends with its gateway's")
    assert not Path(socket).parent.exists()
    # The gateway's own modules take some 60 MB more; together they stay under 600.
    assert parent_mb + child_mb < 520


def test_glibc_knows_what_it_is_told() -> None:
    """It ignores other names without a word."""
    loader = next(Path("/lib64").glob("ld-linux-*.so.2"), None)
    if loader is None:
        pytest.skip("no glibc")
    known = subprocess.run([loader, "--list-tunables"], capture_output=True, text=True, check=True).stdout
    told = {one.partition("=")[0] for one in process.ENVIRONMENT["GLIBC_TUNABLES"].split(":")}
    if tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 35):
        told.remove("glibc.malloc.hugetlb")  # came with 2.35
    assert told <= {line.partition(":")[0] for line in known.splitlines()}
