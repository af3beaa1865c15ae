"""Whether two copies of a probe model are the same one, without reading gigabytes."""

import hashlib
import json
import struct
from pathlib import Path

from probes.base import ProbeError

SAMPLE_BYTES = 64
HEADER_BYTES = 64 * 2**20


def fingerprint(folder: Path) -> str:
    """SHA-256 over name, type, shape, first and last bytes of every tensor, however they are spread over files.

    Training moves every tensor, so a fine-tuned copy differs; a copy in other shards does not.

    Raises:
        ProbeError: the folder has no weights in safetensors, or they are torn.
    """
    tensors: dict[str, bytes] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= _samples(file)
    if not tensors:
        raise ProbeError(f"{folder} has no weights in safetensors: give the folder of a whole model")
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode() + b"\0" + tensors[name])
    return total.hexdigest()


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
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ProbeError(f"{file} is not a whole safetensors file: {error}; fetch the model again") from error
    return found
