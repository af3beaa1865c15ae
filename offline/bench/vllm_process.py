"""One real vLLM server for a measurement, a child that ends with us."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from offline.bench import servers
from offline.bench.servers import HOST, ServerError, free_port
from offline.samplers import SampledArm

__all__ = ["ServerError", "running"]

START_TIMEOUT_S = 300.0


@contextmanager
def running(arm: SampledArm, folder: Path) -> Iterator[str]:
    """Serve an arm's model; yields the base URL, which ends in /v1.

    Args:
        folder: where its log goes.

    Raises:
        ServerError: it did not start.
    """
    port = free_port()
    command = [sys.executable, "-P", "-m", "vllm.entrypoints.openai.api_server", "--host", HOST, "--port", str(port)]
    command += ["--model", arm.source, "--served-model-name", arm.model, "--shutdown-timeout", "1"]
    command += ["--disable-uvicorn-access-log", *arm.engine_args]
    env = {"VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", **arm.env}
    env["PYTHONDONTWRITEBYTECODE"] = ""  # uncompiled, vLLM's imports take twice as long
    with servers.running(command, port, "/health", folder / "vLLM.log", env, START_TIMEOUT_S):
        yield f"http://{HOST}:{port}/v1"
