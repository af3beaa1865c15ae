"""`pika probe-server`: a vLLM server that reads probes, for a gateway with `engine: {kind: vllm}`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.checks import CHECKS
from probes.engine.vllm_plugin import NAME
from probes.engine.vllm_serving import check_servable, overrides, pass_of, served_names
from probes.hub_errors import HubAwayError
from probes.prompt import Renderer, longest_prompt
from probes.reference import load_probe
from server.launch.vllm_server import API_SERVER, HOST, SHUTDOWN_TIMEOUT_S, LaunchError, environment, require_vllm

logger = logging.getLogger(__name__)

PORT = 8200
RESERVED = (
    "--model", "--revision", "--dtype", "--runner", "--hf-overrides", "--served-model-name", "--host", "--port",
    "--load-format", "--config-format",
)  # fmt: skip
"""vLLM's options that are ours to set."""
EXAMPLES = """\
examples:
  pika probe-server --probes probes/nano-small probes/nano-large
  pika probe-server --model Qwen/Qwen2.5-Math-1.5B-Instruct --probes hf://owner/repo/folder --port 8200
  pika probe-server --probes probes/* -- --gpu-memory-utilization 0.2 --max-num-seqs 512
  pika probe-server --probes probes/* -- --enforce-eager --kv-cache-memory-bytes 268435456    # without a GPU

One server runs one probe model; the gateway's engine.url names it. Set VLLM_API_KEY to ask for a key.
"""


def main(argv: list[str]) -> int:
    """`pika probe-server`; becomes the vLLM server. Exit code 2: the probes cannot be served, 1: the Hub is away."""
    at = argv.index("--") if "--" in argv else len(argv)
    args, vllm_arguments = _parser().parse_args(argv[:at]), argv[at + 1 :]
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        command, env = prepare(args, vllm_arguments)
    except (ProbeError, LaunchError) as error:
        print(f"pika: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    os.execve(command[0], command, env)  # noqa: S606  # no shell is wanted


def prepare(args: argparse.Namespace, vllm_arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment.

    Raises:
        ProbeError, LaunchError: the probes cannot be served.
    """
    for argument in vllm_arguments:
        if (option := argument.partition("=")[0].replace("_", "-")) in RESERVED:
            raise LaunchError(f"leave {option} out after --: `pika probe-server` sets it itself")
    artifacts = _load(args)
    command = [sys.executable, "-P", "-m", API_SERVER, *vllm_options(artifacts, args.host, args.port), *vllm_arguments]
    require_plugin()
    model = pass_of(artifacts).probe_model
    env = environment(local=Path(model).is_dir())
    if "VLLM_PLUGINS" in env:
        env["VLLM_PLUGINS"] += f",{NAME}"
    logger.info("%d probes of %s on http://%s:%d", len(artifacts), model, args.host, args.port)
    return command, env


def vllm_options(artifacts: Sequence[Artifact], host: str, port: int) -> list[str]:
    """The arguments of vLLM's API server.

    Raises:
        ProbeError: it cannot serve these probes.
    """
    pass_ = pass_of(artifacts)
    prompt_tokens = max(longest_prompt(artifact.pass_) for artifact in artifacts if artifact.pass_ is not None)
    return [
        "--model", pass_.probe_model,
        *([] if pass_.revision is None else ["--revision", pass_.revision]),
        "--dtype", pass_.dtype,
        "--runner", "pooling",
        "--hf-overrides", json.dumps(overrides(artifacts)),
        "--served-model-name", *served_names(artifacts),
        "--host", host,
        "--port", str(port),
        "--max-model-len", str(prompt_tokens),
        # Weights in any other form may be pickles.
        "--load-format", "safetensors",
        "--config-format", "hf",
        "--shutdown-timeout", str(SHUTDOWN_TIMEOUT_S),
        "--disable-uvicorn-access-log",
    ]  # fmt: skip


def require_plugin() -> None:
    """
    Raises:
        LaunchError: vLLM is not installed, or would not find our plug-in.
    """
    require_vllm()
    if not metadata.entry_points(group="vllm.general_plugins", name=NAME):
        raise LaunchError(f"pika-router is installed without its plug-in {NAME} for vLLM: install it anew with pip")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika probe-server",
        usage="pika probe-server --probes PROBE [PROBE ...] [options] [-- VLLM_ARGUMENT ...]",
        description="Start a vLLM server that runs a probe model's first layers and answers with its probes' scores.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--probes", nargs="+", required=True, metavar="PROBE", help="folders, or hf://owner/repo/folder[@revision]"
    )
    parser.add_argument("--model", help="the probe model's folder or Hub id[@revision] (default: as the probes say)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="default: as the probes say")
    parser.add_argument("--host", default=HOST, help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=PORT, help="default: %(default)s")
    parser.add_argument(
        "--allow-mismatch",
        action="append",
        default=[],
        choices=CHECKS,
        help="serve probes in spite of this failed check (repeatable); give the gateway the same",
    )
    return parser


def _load(args: argparse.Namespace) -> list[Artifact]:
    """The probes that read activations, each once.

    Raises:
        ProbeError: one cannot be loaded, fails a check, or cannot be served; or none is left.
    """
    renderers: list[Renderer] = []
    artifacts = []
    for reference in args.probes:
        artifact = load_probe(
            reference, allow=args.allow_mismatch, probe_model=args.model, dtype=args.dtype, renderers=renderers
        )
        check_servable(artifact)
        if artifact.probe.site is None:
            logger.info("left out: %s reads no activations, the gateway computes it itself", reference)
        else:
            artifacts.append(artifact)
    if not artifacts:
        raise ProbeError("none of these probes reads activations: the gateway computes them itself, without a server")
    return artifacts
