"""SIGHUP: configuration and probes are read again, checked and swapped, and no request is dropped."""

import json
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.config import Settings, load
from server.live import Live, Order
from tests.support import upstream as faults
from tests.support.probes import NANO_POOL
from tests.support.processes import descendants, until
from tests.support.serve import BODY, served
from tests.test_config import pool
from tests.test_config import write as write_config


def write(folder: Path, url: str, **sections: Any) -> Path:
    """The nano pool before one upstream, with probes of its own that a test may change."""
    data = yaml.safe_load((NANO_POOL / "pool.yaml").read_text())
    for model in data["models"].values():
        model["replicas"] = [{"url": url}]
        model["model"] = str(NANO_POOL / model["model"])
    for name, arm in data["arms"].items():
        if not (folder / name).exists():
            shutil.copytree(NANO_POOL / "probes" / name, folder / name)
            config = json.loads((folder / name / "config.json").read_text())
            config["pass"]["probe_model"] = str(NANO_POOL / "nano-medium")
            (folder / name / "config.json").write_text(json.dumps(config))
        arm["probe"] = name
    data |= {"policy": {"name": "max_success"}, **sections}
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    load(file)
    return file


def test_a_reload_swaps_all_at_once_and_drops_nothing(tmp_path: Path) -> None:
    with faults.running(faults.answers) as upstream, served(write(tmp_path, upstream.url)) as gateway:
        first = gateway.client.post("/v1/chat/completions", json=BODY)
        assert first.headers["x-pika-policy"] == "max_success"
        stop, codes, policies = threading.Event(), [], set()

        def ask() -> None:
            while not stop.is_set():
                answer = gateway.client.post("/v1/chat/completions", json=BODY)
                codes.append(answer.status_code)
                policies.add(answer.headers["x-pika-policy"])

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        write(tmp_path, upstream.url, policy={"name": "min_success", "min_success": 0.5})
        shutil.rmtree(tmp_path / "nano-large")
        shutil.copytree(tmp_path / "nano-medium", tmp_path / "nano-large")
        before = gateway.models()
        gateway.hang_up("reloaded: nano-small by")
        after = gateway.models()
        asked = len(codes)
        until(lambda: len(codes) > asked + 20, 30, "requests go on")
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
        assert set(codes) == {200}
        assert policies == {"max_success", "min_success"}
        probe = {
            name: (before[name]["pika"]["probe"], after[name]["pika"]["probe"]) for name in ("nano-small", "nano-large")
        }
        assert probe["nano-small"][0] == probe["nano-small"][1]
        assert probe["nano-large"][0] != probe["nano-large"][1]
        # One engine is left, and counters went on counting.
        until(lambda: len(descendants(gateway.process.pid)) == 1, 30, "the old engine ends")
        metrics = gateway.client.get("/metrics").text
        assert 'pika_reloads_total{result="done"} 1.0' in metrics
        counts = re.findall(r'pika_requests_total\{.*code="200".*\} (\S+)', metrics)
        assert sum(map(float, counts)) == len(codes) + 1


def test_a_stream_ends_with_what_it_began_with(tmp_path: Path) -> None:
    with faults.running(faults.streams_on) as upstream, served(write(tmp_path, upstream.url)) as gateway:
        with gateway.client.stream("POST", "/v1/chat/completions", json={**BODY, "stream": True}) as stream:
            chunks = stream.iter_raw()
            next(chunks)
            gateway.hang_up("reloaded:")
            for _ in range(20):
                assert next(chunks)
        assert len(descendants(gateway.process.pid)) <= 2


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "pool.yaml").write_text("models: {"), "is not valid YAML"),
        (lambda folder: (folder / "pool.yaml").write_text("x: 2024-99-99"), "is not valid YAML"),
        (lambda folder: (folder / "nano-small/probe.safetensors").write_bytes(b"?"), "is not a safetensors file"),
        (lambda folder: shutil.rmtree(folder / "nano-large"), "no probe folder at"),
    ],
)
def test_what_fails_a_check_leaves_all_as_it_was(spoil: Any, said: str, tmp_path: Path) -> None:
    with faults.running(faults.answers) as upstream, served(write(tmp_path, upstream.url)) as gateway:
        before = gateway.models()
        spoil(tmp_path)
        gateway.hang_up("reload refused, configuration and probes stay as they were: ")
        assert said in "".join(gateway.log)
        assert gateway.models() == before
        assert gateway.client.post("/v1/chat/completions", json=BODY).status_code == 200
        assert 'pika_reloads_total{result="refused"} 1.0' in gateway.client.get("/metrics").text
        assert len(descendants(gateway.process.pid)) == 1


@pytest.mark.anyio
async def test_a_failure_that_nobody_foresaw_is_told_too(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    live = Live(Order(load(write_config(tmp_path, pool()))))
    await live.open()
    before = live.state

    def read() -> Settings:
        raise RuntimeError("a disk went away")

    try:
        assert not await live.reload(read)
        assert live.state is before
        assert "reload refused, configuration and probes stay as they were: RuntimeError('a disk went" in caplog.text
        assert "Traceback" in caplog.text
        assert live.metrics.reloads.labels("refused")._value.get() == 1
        assert await live.reload(lambda: before.settings)
    finally:
        await live.close()


EARLY = """
import asyncio, os, signal
from server.commands.serve import run_until_signalled

async def start():
    os.kill(os.getpid(), signal.SIGHUP)
    await asyncio.sleep(0.1)
    print("started")

run_until_signalled(start())
"""


def test_a_signal_that_comes_before_the_gateway_is_ready_does_not_kill_it() -> None:
    done = subprocess.run([sys.executable, "-c", EARLY], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "started\n")
    assert "SIGHUP ignored: not ready yet" in done.stderr
