"""vLLM servers start, are watched, and leave no process. Each test has victims of its own."""

import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.config import ConfigError, load
from server.launch.pool import LaunchError, launched
from tests.support.processes import descendants, no_process_left, running, until

NANO_POOL = Path(__file__).parents[1] / "offline/nano_pool"
ARGS = ["--dtype", "float32", "--enforce-eager", "--max-num-seqs", "16", "--kv-cache-memory-bytes", "67108864"]
START_S = 100
"""Far more than a start takes on two busy cores."""

needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")

VICTIM = """
import asyncio, sys
from pathlib import Path
from server.config import load
from server.launch.pool import launched
async def main():
    async with launched(load(sys.argv[1]), log_dir=Path(sys.argv[2])) as settings:
        print(*(model.replicas[0].url for model in settings.models.values()), flush=True)
        await asyncio.sleep(1000)
asyncio.run(main())
"""


def write_pool(folder: Path, models: Sequence[str] = ("nano-small",), source: str = "", **launch: Any) -> Path:
    """A pool file whose models all run on this machine."""
    entries: Mapping[str, Any] = {
        name: {
            "model": source or str(NANO_POOL / name),
            "max_context_tokens": 512,
            "usd_per_million_tokens": {"input": 1, "output": 1},
            "replicas": [{"launch": {"args": ARGS, "env": {"OMP_NUM_THREADS": "1"}, **launch}}],
        }
        for name in models
    }
    arm = {"success_probability": 0.5, "mean_tokens": {"input": 1, "output": 1}}
    arms = {name: {"model": name, **arm} for name in models}
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump({"models": entries, "arms": arms, "policy": {"name": "min_cost"}}, sort_keys=False))
    return path


def answers(url: str, model: str) -> bool:
    body = {"model": model, "messages": [{"role": "user", "content": "Take 3. Add 4."}], "max_tokens": 4}
    try:
        return httpx.post(f"{url}/chat/completions", json=body, timeout=20, trust_env=False).is_success
    except httpx.TransportError:
        return False


def logged(log: str) -> str:
    return Path(log).read_text()


def logged_pid(log: Path, process: str) -> int:
    """Of the newest start."""
    return int(re.findall(rf"\({process} pid=(\d+)\)", log.read_text())[-1])


async def refusal(path: Path) -> str:
    """Why a pool is not launched; nothing may have been started for it."""
    with no_process_left(), pytest.raises((ConfigError, LaunchError)) as refused:
        async with launched(load(path)):
            pass
    return str(refused.value)


async def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = await refusal(write_pool(tmp_path, port=port))
    assert f"port {port} is in use" in message
    assert "choose another launch.port" in message


async def test_one_port_for_two_servers_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert f"port {port} is in use" in await refusal(write_pool(tmp_path, ["nano-small", "nano-medium"], port=port))


async def test_a_model_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert "no folder at" in await refusal(write_pool(tmp_path, source="./nano-typo"))


@pytest.mark.parametrize("option", ["--port", "--served_model_name", "--model=other"])
async def test_what_pika_sets_cannot_be_set_twice(tmp_path: Path, option: str) -> None:
    assert "launch.args must not hold" in await refusal(write_pool(tmp_path, args=[option, "1"]))


async def test_without_vllm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.launch.vllm_server.util.find_spec", lambda name: None)
    assert "pip install 'pika-router[vllm]'" in await refusal(write_pool(tmp_path))


@needs_vllm
@pytest.mark.vllm
async def test_what_vllm_says_on_failure_is_shown(tmp_path: Path) -> None:
    with pytest.raises(LaunchError) as failure:
        async with launched(load(write_pool(tmp_path, args=["--nonsense"]))):
            pass
    message = str(failure.value)
    assert "unrecognized arguments: --nonsense" in message
    assert "fix: check launch.args" in message
    assert "--nonsense" in logged(re.findall(r"log: (\S+)", message)[0])


@needs_vllm
@pytest.mark.vllm
@pytest.mark.timeout(4 * START_S)
def test_killed_servers_come_back_and_a_killed_parent_leaves_nothing(tmp_path: Path) -> None:
    models = ["nano-small", "nano-medium"]
    small, medium = (tmp_path / f"{model}-0.log" for model in models)
    command = [sys.executable, "-c", VICTIM, str(write_pool(tmp_path, models)), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            urls = parent.stdout.readline().split()
            assert all(map(answers, urls, models))

            # The API server of one and the engine of the other: both come back, at the same place.
            orphan = logged_pid(small, "EngineCore")
            for victim in (logged_pid(small, "APIServer"), logged_pid(medium, "EngineCore")):
                subprocess.run(["kill", "-9", str(victim)], check=True)
            until(lambda: orphan not in running(), 10, "the engine follows its API server")
            until(lambda: all(map(answers, urls, models)), START_S, "both answer again")

            started = descendants(parent.pid)
            assert len(started) >= 6
        finally:
            parent.send_signal(signal.SIGKILL)
    until(lambda: not started & running(), 15, "all that the killed parent started ends")
