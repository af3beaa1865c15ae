"""One real vLLM server for a measurement, a child that ends with us."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from offline.samplers import SampledArm
from probes.engine.worker import die_with_parent

HOST = "127.0.0.1"
START_TIMEOUT_S, STOP_TIMEOUT_S = 300.0, 15.0
POLL_S = 0.2
LAST_BYTES = 3000


class ServerError(Exception):
    """vLLM does not run; the message shows its last lines."""


@contextmanager
def running(arm: SampledArm, folder: Path) -> Iterator[str]:
    """Serve an arm's model; yields the base URL, which ends in /v1.

    Args:
        folder: where its log goes.

    Raises:
        ServerError: it did not start.
    """
    with socket.create_server((HOST, 0)) as sock:
        port = sock.getsockname()[1]
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port)]
    command += ["--model", arm.source, "--served-model-name", arm.model, "--shutdown-timeout", "1"]
    command += ["--disable-uvicorn-access-log", *arm.engine_args]
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **arm.env}
    env.pop("PYTHONDONTWRITEBYTECODE", None)  # uncompiled, vLLM's imports take twice as long
    with (folder / "vllm.log").open("w+b") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, preexec_fn=die_with_parent
        )
        try:
            _wait_healthy(process, f"http://{HOST}:{port}/health", folder / "vllm.log")
            yield f"http://{HOST}:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_healthy(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if client.get(url).is_success:
                    return
            except httpx.TransportError:
                pass
            time.sleep(POLL_S)
    said = log.read_bytes()[-LAST_BYTES:].decode(errors="replace")
    raise ServerError(f"vLLM did not start (exit code {process.poll()}); the end of its log:\n{said}")
