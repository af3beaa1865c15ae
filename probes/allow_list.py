"""Reads joblib files of linear models without running anything that they ask for.

    model = read_model(Path("best_probe.joblib"))
    model.name, model.state["coef_"]

Nothing of scikit-learn, NumPy or joblib is called by the file: `pickle_machine.py` knows no way to. Here is what stands
for the few names that a linear model needs; arrays are built from plain numbers, never from objects.

Source of the arrays' form, bytes between the opcodes: joblib's numpy_pickle.py.
"""

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from probes.base import ProbeError
from probes.decompress import decompress
from probes.pickle_machine import Machine, Symbol, dict_of, set_of

MAX_BYTES = 64 * 2**20
"""Of a file, of what it unpacks to, and of all its arrays together: a linear probe has some kilobytes."""
MAX_DIMENSIONS = 8
NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")
"""Dtypes that arrays may have; records and objects, which may hold pickles of their own, are not among them."""
AGAIN = "train the probe anew with `pika train`"

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_BUILTINS = ("builtins", "__builtin__")
ESTIMATORS = {
    "Ridge": ("sklearn.linear_model._ridge", "sklearn.linear_model.ridge"),
    "LinearRegression": ("sklearn.linear_model._base", "sklearn.linear_model.base"),
    "LogisticRegression": ("sklearn.linear_model._logistic", "sklearn.linear_model.logistic"),
    "StandardScaler": ("sklearn.preprocessing._data", "sklearn.preprocessing.data"),
    "Pipeline": ("sklearn.pipeline",),
}
"""By class, the modules that it has had in the releases of scikit-learn."""
OTHERS = {
    "NumpyArrayWrapper": ("joblib.numpy_pickle", "sklearn.externals.joblib.numpy_pickle"),
    "ndarray": ("numpy",),
    "dtype": ("numpy",),
    "scalar": _MULTIARRAY,
    "_reconstruct": _MULTIARRAY,
    "_frombuffer": ("numpy.core.numeric", "numpy._core.numeric"),
    "_reconstructor": ("copyreg", "copy_reg"),
    "object": _BUILTINS,
    "set": _BUILTINS,
    "frozenset": _BUILTINS,
    "bytes": _BUILTINS,
    "OrderedDict": ("collections",),
    "encode": ("_codecs",),
}
ALLOWED = {(module, name): Symbol(name) for name, modules in {**ESTIMATORS, **OTHERS}.items() for module in modules}


@dataclass(eq=False)
class Model:
    """A fitted estimator: the name of its class, and its attributes."""

    name: str
    state: dict[str, Any] = field(default_factory=dict)
    built: bool = False


@dataclass(eq=False)
class _DType:
    code: str
    order: str = "="

    @property
    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self.order + self.code)


class _Wrapper:
    """Joblib's mark for an array whose bytes follow in the file."""


class _EmptyArray:
    """An array before its state is set."""


def read_model(file: Path) -> Model:
    """The estimator in a joblib file, compressed or not, of any pickle protocol.

    Raises:
        ProbeError: the file asks for anything that a linear model does not need, is too large, or is broken.
    """
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProbeError(f"cannot read {file}: {error.strerror}; download the whole folder again") from error
    try:
        if len(data) > MAX_BYTES:
            raise ProbeError(f"it has more than {MAX_BYTES // 2**20} MiB, which no linear probe needs")
        value = _Reader(decompress(data, MAX_BYTES)).run()
    except ProbeError as error:
        raise ProbeError(f"{file} is refused: {error}; {AGAIN}") from error
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError, struct.error) as error:
        raise ProbeError(
            f"{file} is refused: it is damaged ({type(error).__name__}); download it again, or {AGAIN}"
        ) from error
    if not isinstance(value, Model) or not value.built:
        raise ProbeError(f"{file} holds no fitted linear model but a {type(value).__name__}; {AGAIN}")
    return value


class _Reader(Machine):
    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._bytes = MAX_BYTES

    def find(self, module: str, name: str) -> Symbol:
        if (module, name) not in ALLOWED:
            raise ProbeError(f"it asks for {f'{module}.{name}'[:100]!r}, which no linear model needs")
        return ALLOWED[module, name]

    def make(self, symbol: Symbol) -> Model | _Wrapper:
        if symbol.name == "NumpyArrayWrapper":
            return _Wrapper()
        if symbol.name not in ESTIMATORS:
            raise ProbeError(f"it makes a new {symbol.name}, which no linear model needs")
        return Model(symbol.name)

    def call(self, symbol: Symbol, arguments: tuple[Any, ...]) -> Any:
        if symbol.name not in CALLS:
            raise ProbeError(f"it calls {symbol.name}, which no linear model needs")
        return CALLS[symbol.name](self, *arguments)

    def build(self, target: Any, state: Any) -> Any:
        if isinstance(target, Model) and type(state) is dict and not target.built:
            target.state, target.built = state, True
            return target
        if isinstance(target, _DType):
            target.order = _byte_order(state)
            return target
        if isinstance(target, _Wrapper) and type(state) is dict:
            return self.interleaved(state)
        if isinstance(target, _EmptyArray):
            _, shape, dtype, fortran, raw = state
            array = self.array(raw, dtype, shape, "F" if fortran else "C")
            self.replace_in_memo(target, array)
            return array
        raise ProbeError(f"it sets the state of a {type(target).__name__} in a way that no linear model needs")

    def array(self, raw: Any, dtype: Any, shape: Any, order: Any = "C") -> NDArray[Any]:
        """No array is larger than the bytes it is made of, and all together are not than `MAX_BYTES`."""
        if not isinstance(dtype, _DType) or type(raw) is not bytes or order not in ("C", "F"):
            raise ProbeError("it holds an array of something other than numbers")
        size = _count(shape) * dtype.numpy.itemsize
        if size != len(raw):
            raise ProbeError(f"an array that needs {size} bytes comes with {len(raw)}")
        self.spend_bytes(size)
        values: NDArray[Any] = np.ndarray(shape, dtype.numpy, raw, order=order)
        return values.astype(values.dtype.newbyteorder("="), order="C")

    def interleaved(self, state: dict[Any, Any]) -> NDArray[Any]:
        """The array whose bytes come next: since joblib 1.2 after padding, and the padding's length before that."""
        dtype = state.get("dtype")
        if state.get("subclass") != Symbol("ndarray") or not isinstance(dtype, _DType):
            raise ProbeError("it holds an array of something other than numbers")
        if state.get("numpy_array_alignment_bytes") is not None:
            self.counted("<B")
        raw = self.take(_count(state.get("shape")) * dtype.numpy.itemsize)
        return self.array(raw, dtype, state["shape"], state.get("order"))

    def spend_bytes(self, n: int) -> None:
        self._bytes -= n
        if self._bytes < 0:
            raise ProbeError(f"its arrays have more than {MAX_BYTES // 2**20} MiB, which no linear probe needs")

    def copied(self, values: Any) -> list[Any]:
        if type(values) is not list:
            raise ProbeError(f"it makes a container of a {type(values).__name__}")
        self.spend(len(values))
        return values


def _count(shape: Any) -> int:
    if type(shape) is not tuple or len(shape) > MAX_DIMENSIONS or not all(type(n) is int and n >= 0 for n in shape):
        raise ProbeError("it holds an array of no shape that a linear model has")
    return math.prod(shape)


def _byte_order(state: Any) -> str:
    """From a dtype's state: version, byte order, parts of a record (none here), sizes, flags."""
    _, order, *parts = state[:5]
    if parts != [None, None, None] or order not in ("<", ">", "|", "="):
        raise ProbeError("it holds an array of something other than numbers")
    return str(order)


# What stands for a call, given the reader and the arguments.


def _dtype(reader: _Reader, code: Any, align: Any = False, copy: Any = True) -> _DType:
    if type(code) is not str or code not in NUMBERS:
        raise ProbeError(f"it holds an array of {code[:20] if type(code) is str else 'objects'}, not of numbers")
    return _DType(code)


def _scalar(reader: _Reader, dtype: Any, raw: Any) -> Any:
    return reader.array(raw, dtype, ()).item()


def _reconstruct(reader: _Reader, subclass: Any, shape: Any, code: Any) -> _EmptyArray:
    if subclass != Symbol("ndarray"):
        raise ProbeError("it holds an array of something other than numbers")
    return _EmptyArray()


def _reconstructor(reader: _Reader, symbol: Any, base: Any, state: Any) -> Any:
    """How protocols 0 and 1 make an object."""
    if not isinstance(symbol, Symbol) or base != Symbol("object") or state is not None:
        raise ProbeError("it makes an object in a way that no linear model needs")
    return reader.make(symbol)


def _set(reader: _Reader, values: Any) -> set[Any]:
    return set_of(reader.copied(values))


def _ordered_dict(reader: _Reader, pairs: Any = ()) -> dict[Any, Any]:
    return dict_of([item for key, value in (reader.copied(pairs) if pairs != () else ()) for item in (key, value)])


def _encode(reader: _Reader, text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes."""
    if type(text) is not str or encoding != "latin1":
        raise ProbeError("it encodes text in a way that no linear model needs")
    reader.spend_bytes(len(text))
    return text.encode("latin-1")


CALLS: dict[str, Callable[..., Any]] = {
    "dtype": _dtype,
    "scalar": _scalar,
    "_reconstruct": _reconstruct,
    "_frombuffer": _Reader.array,
    "_reconstructor": _reconstructor,
    "set": _set,
    "frozenset": _set,
    "bytes": lambda reader: b"",
    "OrderedDict": _ordered_dict,
    "encode": _encode,
}
