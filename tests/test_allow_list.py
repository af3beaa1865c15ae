"""What linear models need is read, for many releases and forms; what could do harm is refused, and does none."""

import bz2
import gzip
import lzma
import os
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from probes.allow_list import MAX_BYTES, Model, read_model
from probes.base import ProbeError
from probes.pickle_machine import MAX_STEPS

COMPRESSION = [0, 3, ("zlib", 1), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)]


def fitted(kind: str, dtype: Any = np.float32) -> Any:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 6)).astype(dtype)
    y = x[:, 0] > 0
    match kind:
        case "ridge":
            return Ridge(alpha=np.float64(10), fit_intercept=False).fit(x, y.astype(dtype))
        case "ridge-fortran":  # two targets, whose coefficients stand in Fortran order
            model = Ridge().fit(x, np.stack([y, ~y], axis=1).astype(dtype))
            model.coef_ = np.asfortranarray(model.coef_)
            return model
        case "linear":
            model = LinearRegression(fit_intercept=False).fit(x, y.astype(dtype))
            model.singular_ = None
            return model
        case "logistic":
            return LogisticRegression(C=0.1, fit_intercept=False).fit(x, y)
        case _:
            return make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y.astype(dtype))


def check(read: Any, written: Any) -> None:
    """Same class and same attributes, whatever stands for them."""
    assert isinstance(read, Model)
    assert read.name == type(written).__name__
    for name, value in vars(written).items():
        found = read.state[name]
        if name == "steps":
            for (first, model), (second, original) in zip(found, value, strict=True):
                assert first == second
                check(model, original)
        elif isinstance(value, np.ndarray):
            assert found.dtype == value.dtype
            np.testing.assert_array_equal(found, value)
        else:
            assert found == value


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["ridge", "ridge-fortran", "linear", "logistic", "pipeline"])
def test_reads_what_joblib_writes(tmp_path: Path, kind: str, dtype: Any) -> None:
    model = fitted(kind, dtype)
    for compress in COMPRESSION:
        joblib.dump(model, tmp_path / "model.joblib", compress=compress)
        check(read_model(tmp_path / "model.joblib"), model)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["ridge-fortran", "logistic", "pipeline"])
def test_reads_every_protocol(tmp_path: Path, kind: str, protocol: int) -> None:
    model = fitted(kind)
    model.extra = [OrderedDict(a=1), {1, 2}, frozenset(["b"]), b"", b"\xff", -5, 2**70, (True, None, 1e300, "ü\n")]
    joblib.dump(model, tmp_path / "model.joblib", protocol=protocol)
    check(read_model(tmp_path / "model.joblib"), model)
    (tmp_path / "plain").write_bytes(pickle.dumps(model, protocol))
    check(read_model(tmp_path / "plain"), model)


def test_reads_other_byte_orders(tmp_path: Path) -> None:
    model = fitted("ridge")
    coefficients = model.coef_
    model.coef_ = coefficients.astype(">f4")
    joblib.dump(model, tmp_path / "model.joblib")
    found = read_model(tmp_path / "model.joblib").state["coef_"]
    assert found.dtype.isnative
    np.testing.assert_array_equal(found, coefficients)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ("sklearn.linear_model._logistic", "sklearn.linear_model.logistic"),
        ("sklearn.preprocessing._data", "sklearn.preprocessing.data"),
        ("numpy._core.multiarray", "numpy.core.multiarray"),
    ],
)
def test_reads_the_names_of_older_releases(tmp_path: Path, new: str, old: str) -> None:
    model = fitted("pipeline")
    data = pickle.dumps(model, protocol=0)
    assert new.encode() in data
    (tmp_path / "old").write_bytes(data.replace(new.encode(), old.encode()))
    check(read_model(tmp_path / "old"), model)


def test_reads_arrays_of_joblib_before_padding(tmp_path: Path) -> None:
    """As joblib 0.10 to 1.1 wrote them: the array's bytes at once after the wrapper's state."""
    values = np.arange(6, dtype="<f8").reshape(2, 3)
    wrapper = (
        b"csklearn.externals.joblib.numpy_pickle\nNumpyArrayWrapper\n)\x81}"
        b"(X\x08\x00\x00\x00subclasscnumpy\nndarray\nX\x05\x00\x00\x00shapeK\x02K\x03\x86X\x05\x00\x00\x00order"
        b"X\x01\x00\x00\x00FX\x05\x00\x00\x00dtypecnumpy\ndtype\nX\x02\x00\x00\x00f8K\x00K\x01\x87R"
        b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"X\x0a\x00\x00\x00allow_mmap\x88ub" + values.tobytes("F")
    )
    data = b"\x80\x02csklearn.linear_model.ridge\nRidge\n)\x81}X\x05\x00\x00\x00coef_" + wrapper + b"sb."
    (tmp_path / "old").write_bytes(data)
    np.testing.assert_array_equal(read_model(tmp_path / "old").state["coef_"], values)


# Hostile files. Each would leave a file behind, or take all memory or time, if it got what it asks for.


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


def read_bytes(tmp_path: Path, data: bytes) -> Model:
    (tmp_path / "model.joblib").write_bytes(data)
    return read_model(tmp_path / "model.joblib")


RIDGE = b"csklearn.linear_model._ridge\nRidge\n"
SYSTEM = b"cposix\nsystem\n"
FLOAT32 = b"cnumpy\ndtype\nX\x02\x00\x00\x00f4K\x00K\x01\x87R"


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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot read"):
        read_model(tmp_path / "model.joblib")
