"""`pika engine`: an engine for gateways elsewhere, and gateways that use it."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import yaml

from server.__main__ import main
from server.app import create_app
from server.config import Settings, load
from tests.support import upstream as faults
from tests.support.engines import text_artifact
from tests.support.gateway import serving
from tests.support.processes import no_process_left, until

BODY = {"model": "auto", "messages": [{"role": "user", "content": "two three three"}]}


def write_pool(folder: Path, url: str, upstream: str = "http://127.0.0.1:9/v1", **engine: object) -> Path:
    text_artifact(folder / "probe")
    pool = {
        "models": {
            "small": {
                "model": "owner/small",
                "max_context_tokens": 4096,
                "usd_per_million_tokens": {"input": 0.1, "output": 0.2},
                "replicas": [{"url": upstream}],
            }
        },
        "arms": {"small": {"model": "small", "probe": "probe"}},
        "engine": {"kind": "remote", "url": url, **engine},
        "policy": {"name": "utility", "lambda": 0.1},
    }
    path = folder / "pool.yaml"
    path.write_text(yaml.safe_dump(pool))
    return path


@contextmanager
def engine(config: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """`pika engine` in a process of its own, ready."""
    command = [sys.executable, "-m", "server", "engine", str(config), *options]
    environment = {**os.environ, "ENGINE_KEY": "secret"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stderr is not None
            assert any("engine ready at" in line for line in process.stderr)
            yield process
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setenv("ENGINE_KEY", "secret")
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{sock.getsockname()[1]}"
    with faults.running(faults.answers) as upstream:
        yield load(write_pool(tmp_path, url, upstream.url, api_key_env="ENGINE_KEY"))


def is_ready(gateway: str) -> bool:
    return httpx.get(f"{gateway}/ready", timeout=20).status_code == 200


def test_gateways_route_by_an_engine_that_comes_late_and_goes_again(settings: Settings, tmp_path: Path) -> None:
    with (
        no_process_left(),
        serving(create_app(settings)) as url,
        serving(create_app(settings)) as other,
        httpx.Client(timeout=20) as client,
    ):
        assert client.get(f"{url}/ready").json()["engine"] is False
        assert client.post(f"{url}/v1/chat/completions", json=BODY).status_code == 503
        with engine(tmp_path / "pool.yaml") as process:
            for gateway in (url, other):
                until(partial(is_ready, gateway), 60, "the engine is joined")
                answer = client.post(f"{gateway}/v1/chat/completions", json=BODY)
                assert answer.headers["x-pika-path"] == "routed"
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        until(lambda: not is_ready(url), 10, "the gateway notices")
        lines = [line for one in (url, other) for line in client.get(f"{one}/metrics").text.splitlines()]
        cache = [float(line.split()[-1]) for line in lines if line.startswith("pika_probe_cache_total")]
        assert sum(cache) == 2


def test_a_gateway_with_other_probes_or_another_secret_does_not_start(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with engine(tmp_path / "pool.yaml"):
        monkeypatch.setenv("ENGINE_KEY", "guess")
        assert main(["serve", str(tmp_path / "pool.yaml"), "--port", "0"]) == 2
        assert "refuses this gateway: the secret is not the engine's" in capsys.readouterr().err
        monkeypatch.setenv("ENGINE_KEY", "secret")
        text_artifact(tmp_path / "probe", weight=2.0)
        assert main(["serve", str(tmp_path / "pool.yaml"), "--port", "0"]) == 2
        assert "the engine serves other probes" in capsys.readouterr().err


def test_wrong_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_pool(tmp_path, "tcp://127.0.0.1:1", api_key_env="NOBODY_SET_IT"))
    assert main(["engine", config]) == 2
    assert "the variable NOBODY_SET_IT is not set" in capsys.readouterr().err
    monkeypatch.setenv("NOBODY_SET_IT", "secret")
    assert main(["engine", config, "--listen", "127.0.0.1:9100"]) == 2
    assert "is no address of an engine: tcp://HOST:PORT or unix:///PATH" in capsys.readouterr().err
    assert main(["engine", config, "--listen", f"unix://{tmp_path}/missing/engine.sock"]) == 2
    assert "cannot listen at" in capsys.readouterr().err
