"""The engine as vLLM's client: `pika probe-server` for real, with the nano pool's probes and some more."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import httpx
import numpy as np
import pytest

from offline.label import load_probes, predict
from probes.artifact import Artifact, load_artifact, save_artifact
from probes.base import ProbeError, load
from probes.engine.base import EngineUnavailableError, Prompt, Scores
from probes.engine.local import LocalEngine
from probes.engine.vllm_engine import VllmEngine
from server.app import create_app
from server.launch.vllm_server import free_port
from server.sections.policy import Policy
from tests.support import upstream as faults
from tests.support.examples import card_of, examples
from tests.support.gateway import nano_pool, serving
from tests.support.probes import NANO_POOL, artifact
from tests.support.processes import until

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[1]
KEY = "for this test"
CONCURRENT = 32
BLOCK = 32
VLLM_ARGUMENTS = [
    "--enforce-eager", "--max-num-seqs", str(CONCURRENT), "--kv-cache-memory-bytes", "67108864",
    "--block-size", str(BLOCK), "--enable-chunked-prefill", "--max-num-batched-tokens", "128",
]  # fmt: skip


@dataclass(frozen=True)
class Server:
    url: str
    process: "subprocess.Popen[bytes]"
    artifacts: list[Artifact]
    """The server's probes, and two that read text alone."""

    def engine(self, **options: int) -> VllmEngine:
        return VllmEngine(self.artifacts, [self.url], api_key=KEY, **options)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install")
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    linear = artifact(folder / "linear", "nano-medium", layer=2, position=-5, seed=1)
    activations = [*(load_artifact(NANO_POOL / "probes" / name) for name in ("nano-small", "nano-large")), linear]
    texts = []
    for kind in ("length", "tfidf"):
        probe = load(kind).fit(examples(300, 0), examples(200, 1))[0].probe
        save_artifact(folder / kind, card_of(probe), probe)
        texts.append(load_artifact(folder / kind))
    # The gateway's order need not be the server's.
    artifacts = [texts[0], *reversed(activations), texts[1]]
    command = [sys.executable, "-m", "server", "probe-server", "--port", str(port), "--probes"]
    command += [str(one.folder) for one in activations]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "VLLM_API_KEY": KEY}
    with (folder / "log").open("w+b") as log:
        process = subprocess.Popen(
            [*command, "--", *VLLM_ARGUMENTS], cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: process.poll() is not None or healthy(url), 600, "the probe server is healthy")
            assert process.poll() is None, (folder / "log").read_text()[-5000:]
            yield Server(url, process, artifacts)
        finally:
            kill(process)


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).is_success
    except httpx.TransportError:
        return False


def kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def some_prompts(n: int) -> list[Prompt]:
    """Two passes, the first of which only counts tokens; some are as long as whole blocks of vLLM's and a token."""
    rng = np.random.default_rng(0)
    lengths = [1, 3, BLOCK + 1, 2 * BLOCK + 1, *rng.integers(5, 300, size=n - 4)]
    ids = [tuple(rng.integers(3, 600, size=length).tolist()) for length in lengths]
    return [Prompt((one[: len(one) // 2 + 1], one), f"sum {i} of 7 and lemma 3") for i, one in enumerate(ids)]


async def score(engine: VllmEngine, prompts: list[Prompt], timeout_s: float = 300) -> Scores:
    return await engine.score(prompts, asyncio.get_running_loop().time() + timeout_s)


async def test_scores_are_those_of_the_engine_in_this_process(server: Server) -> None:
    local = LocalEngine(server.artifacts, "cpu")
    assert len(local.passes) == 2
    prompts = some_prompts(96)
    expected = local.score(prompts)
    engine = server.engine()
    await engine.start()
    try:
        for _ in range(2):  # the second time out of the prefix cache
            parts = await asyncio.gather(*(score(engine, prompts[i : i + 3]) for i in range(0, 96, 3)))
            found = Scores.concatenate(parts)
            np.testing.assert_allclose(found.success, expected.success, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.output_tokens, expected.output_tokens, rtol=1e-5)
            np.testing.assert_allclose(found.activation_percentile, expected.activation_percentile, rtol=1e-4)
        assert np.nanmax(expected.output_tokens) > 1
    finally:
        await engine.close()


async def test_what_is_refused_leaves_it_alive(server: Server) -> None:
    good = some_prompts(4)[:4]
    engine = server.engine(queue_prompts=8, queue_tokens=5000)
    with pytest.raises(EngineUnavailableError, match="the engine is closed"):
        await score(engine, good)
    await engine.start()
    try:
        for ids, why in (((5, 100_000), "out of vocabulary"), ((), "prompt")):
            with pytest.raises(EngineUnavailableError, match=rf"refuses a prompt \(400\): .*{why}"):
                await score(engine, [Prompt((ids, ids), "")])
        with pytest.raises(EngineUnavailableError, match="before the deadline"):
            await score(engine, good, timeout_s=-1)
        with pytest.raises(EngineUnavailableError, match="the engine's queue is full: 0 prompts"):
            await score(engine, good * 3)
        assert engine.ready
        assert np.isfinite((await score(engine, good)).success).all()
    finally:
        await engine.close()
    assert not engine.ready


def test_a_gateway_routes_by_what_vllm_tells(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIKA_TEST_ENGINE_KEY", KEY)
    questions = ["Begin with 2. Add 1. Take 9.", "x = 12; x -= 9; x *= 2; what is x?", "7 + 5?"]
    asked = [*questions, "Add 4. " * 300]  # longer than the probe models have positions, and than any arm takes
    with faults.running(faults.answers) as upstream:
        nano = nano_pool(upstream.url)
        vllm = {"kind": "vllm", "url": server.url, "api_key_env": "PIKA_TEST_ENGINE_KEY", "deadline_ms": 60_000.0}
        arms = {name: nano.arms[name] for name in ("nano-small", "nano-large")}  # whose probes that server has
        settings = nano.model_copy(
            update={
                "arms": arms,
                "engine": nano.engine.model_copy(update=vllm),
                "policy": Policy.model_validate({"name": "max_success"}),
            }
        )
        expected = predict(settings, load_probes(settings), asked, "cpu").success
        with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=90) as client:
            assert client.get("/ready").status_code == 200
            data = client.post("/score", json={"input": asked}).raise_for_status().json()["data"]
            found = [[one["arms"][arm]["success_probability"] for arm in arms] for one in data]
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
            assert ["truncated" in one["flags"] for one in data] == [False, False, False, True]
            for question, probabilities in zip(questions, expected[:-1], strict=True):
                body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
                answer = client.post("/v1/chat/completions", json=body)
                assert (answer.status_code, answer.headers["x-pika-path"]) == (200, "routed")
                assert answer.headers["x-pika-arm"] == list(arms)[int(probabilities.argmax())]
    # What it read is counted there, not in the gateway's own series.
    counted = httpx.get(f"{server.url}/metrics", timeout=10, trust_env=False).text
    tokens = re.findall(r"^vllm:prompt_tokens_total\{.*\} (\S+)", counted, re.MULTILINE)
    assert sum(map(float, tokens)) > 0


async def test_a_server_of_other_probes_or_keys_is_not_taken(server: Server, tmp_path: Path) -> None:
    other = artifact(tmp_path, "nano-medium", layer=2, position=-5, seed=2)
    with pytest.raises(
        ProbeError, match=r"has the probe of arm large \(.* serves other probes\): start one with `pika"
    ):
        await VllmEngine([other], [server.url], api_key=KEY).start()
    with pytest.raises(ProbeError, match=r"refuses the key \(401\)"):
        await VllmEngine(server.artifacts, [server.url], api_key="wrong").start()
    away = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(ProbeError, match=rf"{away}: does not answer GET /v1/models"):
        await VllmEngine([other], [away]).start()
    # Of several servers each gives what it has.
    engine = VllmEngine(server.artifacts, [away, server.url], api_key=KEY)
    await engine.start()
    assert engine.ready
    await engine.close()


async def test_a_server_that_dies_is_noticed(server: Server) -> None:
    """The last test, as the server is gone after it."""
    engine = server.engine()
    await engine.start()
    try:
        waiting = asyncio.ensure_future(score(engine, some_prompts(64)))
        await asyncio.sleep(0.05)
        kill(server.process)
        with pytest.raises(EngineUnavailableError, match="does not answer"):
            await waiting
        deadline = time.monotonic() + 60
        while engine.ready:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        with pytest.raises(EngineUnavailableError, match="does not answer GET /v1/models"):
            await score(engine, some_prompts(4))
    finally:
        await engine.close()
