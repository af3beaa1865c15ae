"""Hostile files: each would leave a file behind if it got what it asks for, and gets nothing."""

import bz2
import gzip
import lzma
import os
import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import Ridge

from probes.allow_list import read_model
from probes.base import ProbeError
from tests.support.pickles import FLOAT32, RIDGE, fitted, read_bytes


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def with_attribute(value: Any) -> Any:
    model = fitted("ridge")
    model.extra_ = value
    return model


def mark(folder: Path) -> str:
    return f"open({str(folder / 'ran')!r}, 'w').close()"


def through_numpy_load(folder: Path) -> Any:
    inner = folder / "inner.npy"
    np.save(inner, np.array([Call(exec, mark(folder))], dtype=object), allow_pickle=True)
    return Call(np.load, str(inner), None, True)


def through_getattr(folder: Path) -> Any:
    system = Call(getattr, Call(__import__, "os"), "system")
    return Call(list, Call(map, system, [f"touch {folder / 'ran'}"]))


def through_setstate(folder: Path) -> Any:
    class Gadget:
        def __reduce__(self) -> Any:
            return (Ridge, (), {"__setstate__": Call(eval, mark(folder))})

    return Gadget()


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda folder: Call(os.system, f"touch {folder / 'ran'}"),
    "builtins.eval": lambda folder: Call(eval, mark(folder)),
    "builtins.exec": lambda folder: Call(exec, mark(folder)),
    "an attribute": lambda folder: with_attribute(Call(exec, mark(folder))),
    "nested": lambda folder: Call(list, Call(map, exec, [mark(folder)])),
    "in a dtype": lambda folder: with_attribute(Call(np.dtype, Call(eval, mark(folder)))),
    "in an array's state": lambda folder: with_attribute(np.array([Call(exec, mark(folder))], dtype=object)),
    "a record array": lambda folder: with_attribute(np.zeros(2, dtype=[("a", "f4"), ("b", "O")])),
    "numpy.load": through_numpy_load,
    "numpy.testing": lambda folder: Call(np.testing.rundocs, str(folder / "ran")),
    "numpy.save": lambda folder: Call(np.save, str(folder / "ran"), 1),
    "numpy.fromfile": lambda folder: Call(np.fromfile, "/dev/zero"),
    "joblib.load": lambda folder: Call(joblib.load, str(folder / "inner")),
    "a tuple as a key": lambda folder: {(1, (2, (3,))): Call(exec, mark(folder))},
    "getattr": through_getattr,
    "__setstate__": through_setstate,
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_calls_are_refused_and_not_made(tmp_path: Path, name: str, protocol: int) -> None:
    value = HOSTILE[name](tmp_path)
    joblib.dump(value, tmp_path / "model.joblib", protocol=protocol)
    with pytest.raises(ProbeError, match=r"model\.joblib.*pika train"):
        read_model(tmp_path / "model.joblib")
    assert not (tmp_path / "ran").exists()


def test_the_payloads_would_run(tmp_path: Path) -> None:
    """The files above are what they claim to be."""
    for name in (
        "os.system",
        "builtins.exec",
        "an attribute",
        "nested",
        "in an array's state",
        "numpy.load",
        "getattr",
    ):
        joblib.dump(HOSTILE[name](tmp_path), tmp_path / "model.joblib")
        joblib.load(tmp_path / "model.joblib")
        assert (tmp_path / "ran").exists(), name
        (tmp_path / "ran").unlink()


SYSTEM = b"cposix\nsystem\n"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"iposix\nsystem\n.", id="INST"),
        pytest.param(b"(" + SYSTEM + b"X\x04\x00\x00\x00trueo.", id="OBJ"),
        pytest.param(b"(" + RIDGE + b"o.", id="OBJ of a known class"),
        pytest.param(RIDGE + b")}\x92.", id="NEWOBJ_EX"),
        pytest.param(b"\x82\x01.", id="EXT1"),
        pytest.param(b"\x83\x01\x00.", id="EXT2"),
        pytest.param(b"\x84\x01\x00\x00\x00.", id="EXT4"),
        pytest.param(b"Pelsewhere\n.", id="PERSID"),
        pytest.param(b"Nq\x00Q.", id="BINPERSID"),
        pytest.param(b"\x97.", id="NEXT_BUFFER"),
        pytest.param(b"\x80\x06" + RIDGE + b")\x81}b.", id="unknown protocol"),
        pytest.param(b"\x8c\x05numpy\x8c\x0ctesting.exec\x93)R.", id="dotted name"),
        pytest.param(RIDGE + b")\x81.", id="never fitted"),
        pytest.param(RIDGE + b")R.", id="class called"),
        pytest.param(RIDGE + b")\x81}b}b.", id="state set twice"),
        pytest.param(RIDGE + b"}b.", id="state of a class"),
        pytest.param(RIDGE + b")\x81}b]b.", id="state of a list"),
        pytest.param(RIDGE + b")\x81N}\x86b.", id="state in slots"),
        pytest.param(b"]K\x01K\x02s.", id="items into a list"),
        pytest.param(RIDGE + b")\x81K\x01a.", id="append to an object"),
        pytest.param(b"}]K\x01s.", id="list as a key"),
        pytest.param(b"\x8f(K\x01\x85\x90.", id="tuple in a set"),
        pytest.param(FLOAT32 + b"(K\x03X\x01\x00\x00\x00<NX\x01\x00\x00\x00a}K\x04K\x04K\x00tb.", id="record dtype"),
        pytest.param(b"cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.", id="object dtype"),
        pytest.param(b"cnumpy\ndtype\nX\x03\x00\x00\x00V99\x85R.", id="void dtype"),
        pytest.param(b"cnumpy\ndtype\ncnumpy\nndarray\n\x85R.", id="class as dtype"),
        pytest.param(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.", id="other codec"),
        pytest.param(b"K\x01.", id="a number"),
        pytest.param(b".", id="nothing on the stack"),
        pytest.param(b"(.", id="only a mark"),
        pytest.param(b"t.", id="no mark"),
        pytest.param(b"g5\n.", id="no such memo"),
        pytest.param(b"I" + b"9" * 10_000 + b"\n.", id="enormous number as text"),
        pytest.param(b"\x8b\xff\xff\xff\x7f.", id="enormous number"),
        pytest.param(b"\x8b\xff\xff\xff\xff.", id="negative length"),
        pytest.param(b"X\xff\xff\xff\xff.", id="enormous text"),
        pytest.param(b"\x8e" + b"\xff" * 8 + b".", id="enormous bytes"),
        pytest.param(b"\x96" + b"\xff" * 7 + b"\x00.", id="enormous bytearray"),
        pytest.param(b"", id="empty"),
        pytest.param(b"not a pickle", id="text"),
        pytest.param(b"\x04\x22\x4d\x18", id="lz4"),
        pytest.param(b"ZF0x10", id="old zfile"),
    ],
)
def test_broken_and_hostile_programs_are_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(ProbeError, match=r"model\.joblib"):
        read_bytes(tmp_path, data)


def test_a_second_pickle_is_refused(tmp_path: Path) -> None:
    good = pickle.dumps(fitted("ridge"))
    evil = pickle.dumps(Call(exec, mark(tmp_path)))
    with pytest.raises(ProbeError, match="something follows"):
        read_bytes(tmp_path, good + evil)
    for compress in (zlib.compress, gzip.compress, bz2.compress, lzma.compress):
        with pytest.raises(ProbeError, match="follow"):
            read_bytes(tmp_path, compress(good) + compress(evil))
    assert not (tmp_path / "ran").exists()


def test_a_pickle_between_the_opcodes_is_refused(tmp_path: Path) -> None:
    """Joblib writes an array of objects as a second pickle where others have their bytes."""
    joblib.dump(with_attribute(np.array([Call(exec, mark(tmp_path))], dtype=object)), tmp_path / "model.joblib")
    assert b"exec" in (tmp_path / "model.joblib").read_bytes()
    with pytest.raises(ProbeError, match="array of O"):
        read_model(tmp_path / "model.joblib")
    assert not (tmp_path / "ran").exists()
