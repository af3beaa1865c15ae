"""Unpacks what joblib may have compressed, and never more than a given size."""

import bz2
import lzma
import zlib
from typing import Protocol

from probes.base import ProbeError

MEMORY_BYTES = 128 * 2**20
"""What LZMA may use for its dictionary."""


class _Decompressor(Protocol):
    """What the three libraries have in common."""

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


def decompress(data: bytes, max_bytes: int) -> bytes:
    """The content of zlib, gzip, bz2, lzma or xz data; other data as they are.

    Raises:
        ProbeError: they unpack to more than `max_bytes`, are damaged, or compressed in another way.
    """
    if data.startswith((b"\x04\x22\x4d\x18", b"ZF")):
        raise ProbeError("it is compressed with lz4 or by a joblib before 0.10: dump it again with compress=3")
    unpacker = _unpacker(data)
    if unpacker is None:
        return data
    try:
        content = unpacker.decompress(data, max_bytes + 1)
    except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
        raise ProbeError(f"its compression is damaged ({error})") from error
    if len(content) > max_bytes:
        raise ProbeError(f"it unpacks to more than {max_bytes // 2**20} MiB, which no linear probe needs")
    if not unpacker.eof:
        raise ProbeError("its compressed data are cut short")
    if unpacker.unused_data:
        raise ProbeError("something follows the compressed data")
    return content


def _unpacker(data: bytes) -> _Decompressor | None:
    """By the first bytes, as joblib tells them."""
    if data.startswith(b"\x78"):
        return zlib.decompressobj()
    if data.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    if data.startswith(b"BZh"):
        return bz2.BZ2Decompressor()
    if data.startswith((b"\xfd7zXZ", b"\x5d\x00\x00")):
        return lzma.LZMADecompressor(memlimit=MEMORY_BYTES)
    return None
