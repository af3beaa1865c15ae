"""Text as some data sets pack it: base64 of zlib of a pickle of one string.

A pickle can run anything, so it is never loaded: the allow-list's machine reads it with an allow-list that is empty.
"""

import base64
import binascii
import struct
from typing import Any, NoReturn

from probes.base import ProbeError
from probes.decompress import decompress
from probes.pickle_machine import Machine, Symbol

MAX_BYTES = 256 * 2**20
"""Of the text."""


class PackedTextError(ValueError):
    """It is packed in another way, damaged or too large, or holds something other than text."""


def unpack(packed: str) -> str:
    """
    Raises:
        PackedTextError: see there.
    """
    try:
        text = _TextMachine(decompress(base64.b64decode(packed, validate=True), MAX_BYTES)).run()
    except (ProbeError, LookupError, TypeError, ValueError, struct.error, binascii.Error) as error:
        raise PackedTextError("they are not one packed text of a sensible size, so they are not read") from error
    if not isinstance(text, str):
        raise PackedTextError(f"they are packed as a {type(text).__name__}, not as text")
    return text


class _TextMachine(Machine):
    """Knows no names, so it can make nothing but plain values."""

    def find(self, module: str, name: str) -> NoReturn:
        raise ProbeError(f"it names {module}.{name}")

    def make(self, symbol: Symbol) -> NoReturn:
        raise ProbeError("it makes an object")

    def call(self, symbol: Symbol, arguments: tuple[Any, ...]) -> NoReturn:
        raise ProbeError("it calls something")

    def build(self, target: Any, state: Any) -> NoReturn:
        raise ProbeError("it sets a state")
