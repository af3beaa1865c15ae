"""A pickle is a program for a small stack machine. This is that machine with most of it left out.

It cannot import, call or set attributes: a name becomes a `Symbol`, which is inert, and only what `allow_list.py`
gives for it can stand in for a call. Every other name or opcode ends the reading, and so does too much of anything.

Source: Python's pickletools.py, which documents every opcode.
"""

import struct
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from probes.base import ProbeError

MAX_STEPS = 100_000
"""Opcodes, and items copied; a linear model needs some hundreds. Bounds nesting and the memo too."""
MAX_PROTOCOL = 5
MAX_INT_BYTES = 16
ATOMS = (str, int, float, bool, type(None), bytes)
"""What may be a key: hashing a tuple of tuples of tuples may take for ever."""


@dataclass(frozen=True)
class Symbol:
    """A class or function that a pickle may name. It is nothing but its name."""

    name: str


class Machine(ABC):
    """Runs one pickle; what names, calls and states mean is for the subclass to say.

    Besides ProbeError, a broken pickle may raise LookupError, TypeError, ValueError or struct.error.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._steps = MAX_STEPS

    @abstractmethod
    def find(self, module: str, name: str) -> Symbol:
        """What stands for a name."""

    @abstractmethod
    def make(self, symbol: Symbol) -> Any:
        """What stands for a new object of a class."""

    @abstractmethod
    def call(self, symbol: Symbol, arguments: tuple[Any, ...]) -> Any:
        """What stands for a call."""

    @abstractmethod
    def build(self, target: Any, state: Any) -> Any:
        """What an object is once its state is set."""

    def run(self) -> Any:
        while (code := self.take(1)) != b".":
            self.spend(1)
            if code not in OPCODES:
                raise ProbeError(f"it uses the pickle opcode {code!r}, which no linear model needs")
            OPCODES[code](self)
        if self._at != len(self._data):
            raise ProbeError("something follows the model")
        return self._stack.pop()

    def spend(self, steps: int) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise ProbeError(f"it takes more than {MAX_STEPS} steps, which no linear model needs")

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if not 0 <= n <= len(self._data) - self._at:
            raise ProbeError("it is cut short")
        self._at += n
        return self._data[self._at - n : self._at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def counted(self, form: str) -> bytes:
        """Bytes whose number stands before them."""
        return self.take(self.number(form))

    def line(self) -> str:
        end = self._data.index(b"\n", self._at)
        return self.take(end + 1 - self._at)[:-1].decode("raw-unicode-escape")

    # What opcodes do.

    def protocol(self) -> None:
        if self.number("<B") > MAX_PROTOCOL:
            raise ProbeError(f"it is written in a pickle protocol above {MAX_PROTOCOL}")

    def push(self, value: Any) -> None:
        self._stack.append(value)

    def push_integer(self, text: str) -> None:
        """Of protocol 0, which writes booleans as 00 and 01."""
        self.push(text == "01" if text in ("00", "01") else int(text.removesuffix("L")))

    def push_long(self, data: bytes) -> None:
        if len(data) > MAX_INT_BYTES:
            raise ProbeError("it holds an enormous number")
        self.push(int.from_bytes(data, "little", signed=True))

    def push_tuple(self, n: int) -> None:
        """Of the last n values."""
        values = tuple(self._stack.pop() for _ in range(n))
        self.push(values[::-1])

    def mark(self) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def since_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._marked.pop()
        return values

    def drop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self.since_mark()

    def put(self, key: int) -> None:
        self._memo[key] = self._stack[-1]

    def get(self, key: int) -> None:
        self.push(self._memo[key])

    def fill(self, kind: type, items: list[Any]) -> None:
        """Items into the container on top of the stack."""
        target: Any = self._stack[-1]
        found: type = type(target)
        if found is not kind:
            raise ProbeError(f"it fills a {found.__name__} as if it were a {kind.__name__}")
        if isinstance(target, list):
            target.extend(items)
        else:
            target.update(dict_of(items) if isinstance(target, dict) else set_of(items))

    def push_name(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ProbeError("it names a class by something other than text")
        self.push(self.find(module, name))

    def push_named(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self.push_name(module, name)

    def push_new(self) -> None:
        arguments, symbol = self._stack.pop(), self._stack.pop()
        if not isinstance(symbol, Symbol) or arguments != ():
            raise ProbeError("it makes an object in a way that no linear model needs")
        self.push(self.make(symbol))

    def push_call(self) -> None:
        arguments, symbol = self._stack.pop(), self._stack.pop()
        if not isinstance(symbol, Symbol) or type(arguments) is not tuple:
            raise ProbeError(f"it calls a {type(symbol).__name__}, which no linear model needs")
        self.push(self.call(symbol, arguments))

    def push_built(self) -> None:
        state, target = self._stack.pop(), self._stack.pop()
        self.push(self.build(target, state))

    def replace_in_memo(self, old: Any, new: Any) -> None:
        self.spend(len(self._memo))
        self._memo.update({key: new for key, value in self._memo.items() if value is old})


def dict_of(items: list[Any]) -> dict[Any, Any]:
    """Keys and values in turn."""
    return dict(zip(_keys(items[::2]), items[1::2], strict=True))


def set_of(items: list[Any]) -> set[Any]:
    return set(_keys(items))


def _keys(values: list[Any]) -> list[Any]:
    for value in values:
        if type(value) not in ATOMS:
            raise ProbeError(f"it has a {type(value).__name__} as a key, which no linear model needs")
    return values


OPCODES: dict[bytes, Callable[[Machine], Any]] = {
    b"\x80": lambda m: m.protocol(),
    b"\x95": lambda m: m.take(8),  # a frame's length helps whoever reads from a pipe
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"J": lambda m: m.push(m.number("<i")),
    b"K": lambda m: m.push(m.number("<B")),
    b"M": lambda m: m.push(m.number("<H")),
    b"G": lambda m: m.push(m.number(">d")),
    b"I": lambda m: m.push_integer(m.line()),
    b"L": lambda m: m.push_integer(m.line()),
    b"F": lambda m: m.push(float(m.line())),
    b"\x8a": lambda m: m.push_long(m.counted("<B")),
    b"\x8b": lambda m: m.push_long(m.counted("<i")),
    b"V": lambda m: m.push(m.line()),
    b"\x8c": lambda m: m.push(m.counted("<B").decode()),
    b"X": lambda m: m.push(m.counted("<I").decode()),
    b"\x8d": lambda m: m.push(m.counted("<Q").decode()),
    b"C": lambda m: m.push(m.counted("<B")),
    b"B": lambda m: m.push(m.counted("<I")),
    b"\x8e": lambda m: m.push(m.counted("<Q")),
    b"\x96": lambda m: m.push(m.counted("<Q")),
    b"(": lambda m: m.mark(),
    b"0": lambda m: m.drop(),
    b"1": lambda m: m.since_mark(),
    b"2": lambda m: m.push(m._stack[-1]),
    b")": lambda m: m.push(()),
    b"\x85": lambda m: m.push_tuple(1),
    b"\x86": lambda m: m.push_tuple(2),
    b"\x87": lambda m: m.push_tuple(3),
    b"t": lambda m: m.push(tuple(m.since_mark())),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.since_mark()),
    b"a": lambda m: m.fill(list, [m._stack.pop()]),
    b"e": lambda m: m.fill(list, m.since_mark()),
    b"}": lambda m: m.push({}),
    b"d": lambda m: m.push(dict_of(m.since_mark())),
    b"s": lambda m: m.fill(dict, [m._stack.pop(), m._stack.pop()][::-1]),
    b"u": lambda m: m.fill(dict, m.since_mark()),
    b"\x8f": lambda m: m.push(set()),
    b"\x90": lambda m: m.fill(set, m.since_mark()),
    b"\x91": lambda m: m.push(set_of(m.since_mark())),
    b"p": lambda m: m.put(int(m.line())),
    b"q": lambda m: m.put(m.number("<B")),
    b"r": lambda m: m.put(m.number("<I")),
    b"\x94": lambda m: m.put(len(m._memo)),
    b"g": lambda m: m.get(int(m.line())),
    b"h": lambda m: m.get(m.number("<B")),
    b"j": lambda m: m.get(m.number("<I")),
    b"c": lambda m: m.push_name(m.line(), m.line()),
    b"\x93": lambda m: m.push_named(),
    b"\x81": lambda m: m.push_new(),
    b"R": lambda m: m.push_call(),
    b"b": lambda m: m.push_built(),
}
"""All opcodes that there are here. Not among them: persistent ids, extensions, INST, OBJ, NEWOBJ_EX, buffers from
outside, and the strings of Python 2."""
