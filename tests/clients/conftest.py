"""One gateway for the session: `pika up` on the nano pool with real vLLM, run by the main environment's Python.

This environment holds the clients alone, whose versions clash with vLLM's; nothing of ours is imported here.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("PIKA_PYTHON", str(ROOT / ".venv/bin/python"))
POOL = ROOT / "offline/nano_pool/pool.yaml"
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # its prices are not asked of the network
START_TIMEOUT_S, STOP_TIMEOUT_S, POLL_S = 300, 30, 0.2
ARMS = ("nano-small", "nano-medium", "nano-large")
PROBLEM = "What number do we end with? Begin with 12. Add 3. Double it. Subtract 5. Begin with 4. Add 3."
"""Its answer is 7."""


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Ends in /v1."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    log = tmp_path_factory.mktemp("gateway") / "log.txt"
    # It ends with this process, however that ends.
    command = [PYTHON, "-P", "-m", "offline.child", str(os.getpid()), "up", str(POOL), "--port", str(port)]
    with log.open("wb") as output:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
    try:
        _wait_ready(process, f"http://127.0.0.1:{port}/ready", log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def _wait_ready(process: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if httpx.get(url, trust_env=False).is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    pytest.fail(f"pika up is not ready (exit code {process.poll()}):\n{log.read_text(errors='replace')[-3000:]}")
