"""The engine process: reads prompts from stdin and writes scores to stdout, until stdin ends.

python -m probes.engine.worker cpu ARTIFACT [ARTIFACT ...]      (started by `probes.engine.process`; see `wire.py`)
"""

import ctypes
import logging
import os
import signal
import sys
from typing import BinaryIO

from probes.base import ProbeError
from probes.engine.base import Prompt
from probes.engine.local import LocalEngine
from probes.engine.wire import decode_artifact, decode_prompts, encode_error, encode_ready, encode_scores

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
UNUSED = ("sklearn", "scipy", "pandas", "pyarrow")
"""Transformers imports these wherever they are installed: 125 MB that no forward pass reads."""


def main(device: str, arguments: list[str]) -> None:
    die_with_parent()
    with _private_stdout() as out:
        try:
            artifacts = [decode_artifact(argument) for argument in arguments]
            if any(artifact.probe.site is not None for artifact in artifacts):
                sys.modules.update(dict.fromkeys(UNUSED))  # type: ignore[arg-type]  # None: "not installed"
                import torch

                torch.set_num_threads(len(os.sched_getaffinity(0)))
            engine = LocalEngine(artifacts, device)
            # The first pass is slow; no user should wait for it.
            engine.score([Prompt(((0,),) * len(engine.passes), "a")])
        except ProbeError as error:
            _write(out, encode_error(str(error)))
            return
        _write(out, encode_ready())
        for line in sys.stdin.buffer:
            try:
                answer = encode_scores(engine.score(decode_prompts(line), partial=True))
            except Exception as error:
                logger.exception("a micro-batch failed")
                answer = encode_error(f"{type(error).__name__}: {error}")
            _write(out, answer)


def die_with_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask Linux for a signal when the parent ends, however that ends; elsewhere the end of stdin must do."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal_number)


def _private_stdout() -> BinaryIO:
    """The real stdout; what libraries print goes to stderr instead."""
    private = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return private


def _write(out: BinaryIO, line: bytes) -> None:
    out.write(line)
    out.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
