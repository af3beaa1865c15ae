"""Damaged files, and files that would take all memory or time if they got what they ask for."""

import bz2
import gzip
import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest

from probes.allow_list import MAX_BYTES, read_model
from probes.base import ProbeError
from probes.pickle_machine import MAX_STEPS
from tests.support.pickles import FLOAT32, RIDGE, fitted, read_bytes


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    joblib.dump(fitted("logistic"), tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    for end in range(len(data)):
        with pytest.raises(ProbeError):
            read_bytes(tmp_path, data[:end])


def test_every_flipped_byte_is_harmless(tmp_path: Path) -> None:
    """Damage ends in a refusal or in other numbers, never in another error."""
    data = pickle.dumps(fitted("pipeline"), protocol=4)
    rng = np.random.default_rng(0)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= int(rng.integers(1, 256))
        try:
            read_bytes(tmp_path, bytes(damaged))
        except ProbeError:
            continue


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_bombs_are_refused(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    bomb = compress(bytes(MAX_BYTES + 2**20))
    assert len(bomb) < 2**20
    with pytest.raises(ProbeError, match="unpacks to more than 64 MiB"):
        read_bytes(tmp_path, bomb)


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    """A real zip archive, which joblib never writes, and a bomb within a bomb: each layer is one too many."""
    with zipfile.ZipFile(tmp_path / "model.joblib", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.joblib", bytes(MAX_BYTES * 2))
    assert (tmp_path / "model.joblib").stat().st_size < 2**20
    with pytest.raises(ProbeError, match=r"model\.joblib is refused"):
        read_model(tmp_path / "model.joblib")
    with pytest.raises(ProbeError, match=r"model\.joblib is refused"):
        read_bytes(tmp_path, zlib.compress(zlib.compress(bytes(MAX_BYTES * 2))))


def test_damaged_compression_is_refused(tmp_path: Path) -> None:
    data = zlib.compress(pickle.dumps(fitted("ridge")))
    with pytest.raises(ProbeError, match="cut short"):
        read_bytes(tmp_path, data[:-10])
    with pytest.raises(ProbeError, match="damaged"):
        read_bytes(tmp_path, data[:20] + bytes(20) + data[40:])


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "model.joblib").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ProbeError, match="more than 64 MiB"):
        read_model(tmp_path / "model.joblib")


def test_a_huge_declared_array_is_refused(tmp_path: Path) -> None:
    joblib.dump(fitted("ridge"), tmp_path / "small", protocol=2)
    data = (tmp_path / "small").read_bytes()
    shape = b"K\x06\x85"  # (6,)
    assert data.count(shape) == 1
    for huge in (b"\x8a\x08" + struct.pack("<q", 2**62) + b"\x85", b"J\xff\xff\xff\x7f\x85", b"J\xff\xff\xff\xff\x85"):
        with pytest.raises(ProbeError):
            read_bytes(tmp_path, data.replace(shape, huge))


def test_repeated_arrays_cannot_take_all_memory(tmp_path: Path) -> None:
    """One megabyte of bytes in the memo, and 200 arrays of it."""
    raw = b"B" + struct.pack("<I", 2**20) + bytes(2**20) + b"q\x000"
    one = b"cnumpy.core.numeric\n_frombuffer\n(h\x00h\x01J\x00\x00\x04\x00\x85X\x01\x00\x00\x00CtRa"
    data = raw + FLOAT32 + b"q\x010]" + one * 200 + b"."
    with pytest.raises(ProbeError, match="arrays have more than 64 MiB"):
        read_bytes(tmp_path, data)


def test_a_memo_bomb_is_refused(tmp_path: Path) -> None:
    """Billion laughs: each list holds the one before ten times. Small here, but nobody may walk through it."""
    laughs = b"](K\x01eq\x00" + b"".join(
        b"](" + (b"j" + struct.pack("<I", i)) * 10 + b"er" + struct.pack("<I", i + 1) for i in range(60)
    )
    with pytest.raises(ProbeError):
        read_bytes(tmp_path, laughs + b".")
    model = RIDGE + b")\x81}X\x05\x00\x00\x00coef_" + laughs + b"0" * 61 + b"h\x3csb."
    assert read_bytes(tmp_path, model).name == "Ridge"
    for key in (b"}h\x3cK\x01s", b"\x8f(h\x3c\x90", b"cbuiltins\nset\nh\x3c\x85R"):
        with pytest.raises(ProbeError):
            read_bytes(tmp_path, laughs + key + b".")


def test_copies_are_counted(tmp_path: Path) -> None:
    """A list of 30,000 numbers, made into a set again and again."""
    numbers = b"](" + b"K\x01" * 30_000 + b"eq\x000"
    with pytest.raises(ProbeError, match="steps"):
        read_bytes(tmp_path, numbers + b"]" + b"cbuiltins\nset\nh\x00\x85Ra" * 1000 + b".")


def test_deep_nesting_ends(tmp_path: Path) -> None:
    for one in (b"\x85", b"]q\x000"):
        with pytest.raises(ProbeError, match="steps"):
            read_bytes(tmp_path, b"N" + one * MAX_STEPS + b".")
    for deep in (b"N" + b"\x85" * 90_000, b"(" * 40_000 + b"t" * 40_000, b"]" * 40_000 + b"a" * 39_999):
        with pytest.raises(ProbeError, match="no fitted linear model"):
            read_bytes(tmp_path, deep + b".")
    nested = (RIDGE + b")\x81}K\x01") * 10_000 + b"N" + b"sb" * 10_000
    assert read_bytes(tmp_path, nested + b".").name == "Ridge"


def test_a_list_that_holds_itself_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="no fitted linear model"):
        read_bytes(tmp_path, b"]q\x00h\x00a.")
