"""A probe as a folder: `config.json` (the card) and `probe.safetensors` (the weights). Never a pickle.

artifact = load_artifact("probes/nano-small")
artifact.probe.raw(activations)
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from probes.base import Probe, ProbeError, load
from probes.card import Pass, ProbeCard
from probes.source import resolve_model

CONFIG = "config.json"
WEIGHTS = "probe.safetensors"
CONFIG_BYTES = 4 * 2**20
WEIGHTS_BYTES = 256 * 2**20
"""A head is a few kilobytes; what is larger than this is something else."""
RETRAIN = "make it anew with `pika train`"


@dataclass(frozen=True)
class Artifact:
    folder: Path
    card: ProbeCard
    probe: Probe
    revision: str
    """Short hash of the artifact's files: names these very weights in headers and metrics."""

    @property
    def pass_(self) -> Pass:
        """The card's pass with the probe model's path resolved against the folder.

        Raises:
            ProbeError: the path leads nowhere.
        """
        try:
            source = resolve_model(self.card.pass_.probe_model, self.folder)
        except ProbeError as error:
            raise ProbeError(f"{self.folder / CONFIG}: {error}") from error
        return self.card.pass_.model_copy(update={"probe_model": source})


def load_artifact(folder: str | os.PathLike[str]) -> Artifact:
    """Read and check a probe artifact.

    Raises:
        ProbeError: the folder, a file or a value in it is missing or wrong; names it and the fix.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ProbeError(f"no probe folder at {folder}: name one that `pika train` wrote")
    card = _read_card(folder / CONFIG)
    tensors = _read_tensors(folder / WEIGHTS)
    try:
        probe = load(card.kind).from_artifact(card, tensors, {})
    except ProbeError as error:
        raise ProbeError(f"{folder}: {error}") from error
    content = b"".join((folder / name).read_bytes() for name in (CONFIG, WEIGHTS))
    return Artifact(folder, card, probe, revision=hashlib.sha256(content).hexdigest()[:12])


def save_artifact(folder: str | os.PathLike[str], card: ProbeCard, probe: Probe) -> None:
    """Write a probe artifact, whole or not at all; an older one at that place is replaced.

    Raises:
        ProbeError: something that is no probe artifact stands there.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProbeError(f"{folder} exists and is no probe folder: remove it or write elsewhere")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        config = card.model_dump(mode="json", by_alias=True)
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        # safetensors' save_file would make a file that nobody else may read.
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in probe.tensors().items()}
        (new / WEIGHTS).write_bytes(save(tensors))
        try:
            # A folder that is not empty cannot be renamed over.
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:  # Ctrl-C between the two included
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


def distinct_passes(artifacts: Iterable[Artifact]) -> tuple[Pass, ...]:
    """The passes that the artifacts need, each once, in order of first use."""
    passes: list[Pass] = []
    for artifact in artifacts:
        if artifact.pass_ not in passes:
            passes.append(artifact.pass_)
    return tuple(passes)


def _read_card(file: Path) -> ProbeCard:
    _check_size(file, CONFIG_BYTES)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProbeError(f"{file} is not valid JSON: {error}; {RETRAIN}") from error
    if not isinstance(data, dict):
        raise ProbeError(f"{file} must hold a JSON object; {RETRAIN}")
    version = data.get("schema_version")
    if version != 1:
        raise ProbeError(f"{file}: schema_version is {version!r}, this release reads 1; {RETRAIN}")
    try:
        card = ProbeCard.model_validate(data)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in error.errors()[:5])
        raise ProbeError(f"{file}: {problems}; {RETRAIN}") from error
    for name in card.files:
        if name not in (CONFIG, WEIGHTS):
            raise ProbeError(f"{file}: files names {name!r}; a {card.kind} probe has {CONFIG} and {WEIGHTS} alone")
    return card


def _read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    _check_size(file, WEIGHTS_BYTES)
    try:
        tensors: dict[str, NDArray[np.float32]] = load_file(file)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ProbeError(f"{file} is not a safetensors file of NumPy types: {error}; {RETRAIN}") from error
    for name, tensor in tensors.items():
        if tensor.dtype != np.float32:
            raise ProbeError(f"{file}: tensor {name!r} is {tensor.dtype}, not float32; {RETRAIN}")
        if not np.isfinite(tensor).all():
            raise ProbeError(f"{file}: tensor {name!r} has values that are not finite; {RETRAIN}")
    return tensors


def _check_size(file: Path, limit: int) -> None:
    if not file.is_file():
        raise ProbeError(f"{file} is missing: the folder is no whole probe artifact; {RETRAIN}")
    if file.stat().st_size > limit:
        raise ProbeError(f"{file} has more than {limit // 2**20} MiB, which no probe needs; {RETRAIN}")
