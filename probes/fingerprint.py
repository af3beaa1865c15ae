"""Whether two copies of a probe model are the same one, without reading gigabytes."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from probes.base import ProbeError
from probes.card import Pass
from probes.source import model_file, read_json

SAMPLE_BYTES = 64
HEADER_BYTES = 64 * 2**20
CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
NO_MATTER = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures")
"""Keys of the configuration that change no activation; in which type they are computed is a check of its own."""


def fingerprint_of(pass_: Pass) -> str | None:
    """Of the probe model in its folder, or in the Hub's cache; None where the cache has not the weights.

    Raises:
        ProbeError: see `fingerprint`; or there is no such model.
    """
    if Path(pass_.probe_model).is_dir():
        return fingerprint(Path(pass_.probe_model))
    # The cache keeps a commit's files in one folder; those that were needed so far.
    folder = model_file(pass_, CONFIG).parent
    files = _weight_files(folder)
    return fingerprint(folder) if files and all(file.is_file() for file in files) else None


def fingerprint(folder: Path) -> str:
    """SHA-256 over the configuration, and name, type, shape, first and last bytes of every tensor, however they are
    spread over files.

    Training moves every tensor, so a fine-tuned copy differs; a copy in other shards does not.

    Raises:
        ProbeError: the folder has no weights in safetensors, or they are torn.
    """
    tensors: dict[str, bytes] = {}
    for file in _weight_files(folder):
        tensors |= _samples(file)
    if not tensors:
        raise ProbeError(f"{folder} has no weights in safetensors: give the folder of a whole model")
    config = read_json(folder / CONFIG if (folder / CONFIG).is_file() else None)
    total = hashlib.sha256(json.dumps(_that_matters(config), sort_keys=True).encode() + b"\0")
    for name in sorted(tensors):
        total.update(name.encode() + b"\0" + tensors[name])
    return total.hexdigest()


def _weight_files(folder: Path) -> list[Path]:
    """The files that Transformers reads: a repository may hold the weights once more in its maker's own form."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    shards = read_json(folder / INDEX if (folder / INDEX).is_file() else None).get("weight_map")
    if isinstance(shards, dict):
        return [folder / Path(str(name)).name for name in sorted(set(map(str, shards.values())))]
    return sorted(folder.glob("*.safetensors"))


def _that_matters(value: Any) -> Any:
    """A configuration without what changes no activation, in its parts too."""
    if not isinstance(value, dict):
        return value
    return {key: _that_matters(part) for key, part in value.items() if key not in NO_MATTER}


def _samples(file: Path) -> dict[str, bytes]:
    """Per tensor what identifies it. The file: an 8-byte length, a JSON header, then the bytes of all tensors."""
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > HEADER_BYTES:
                raise ValueError("the header is too long")
            header = json.loads(opened.read(length))
            found = {}
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = (8 + length + offset for offset in entry["data_offsets"])
                opened.seek(begin)
                head = opened.read(min(SAMPLE_BYTES, end - begin))
                opened.seek(max(begin, end - SAMPLE_BYTES))
                tail = opened.read(min(SAMPLE_BYTES, end - begin))
                found[name] = json.dumps([entry["dtype"], entry["shape"]]).encode() + head + tail
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ProbeError(f"{file} is not a whole safetensors file: {error}; fetch the model again") from error
    return found
