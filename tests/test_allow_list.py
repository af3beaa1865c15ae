"""What linear models need is read, for many releases and forms; what could do harm is refused, and does none."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest

from probes.allow_list import Model, read_model
from probes.base import ProbeError
from tests.support.pickles import fitted

COMPRESSION = [0, 3, ("zlib", 1), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3)]


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


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="cannot read"):
        read_model(tmp_path / "model.joblib")
