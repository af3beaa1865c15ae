"""JSON from elsewhere: whatever is wrong with it is one error."""

import json
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from probes.base import ProbeError

MOST = 80
"""Characters of a foreign value that an error quotes."""


def json_of(content: bytes, where: str, fix: str = "", parse_constant: Callable[[str], Any] | None = None) -> Any:
    """What JSON text says.

    Args:
        where: names the text in errors.
        fix: what to do about it.
        parse_constant: what NaN and the infinities become, which Python writes; None: themselves.

    Raises:
        ProbeError: it is no JSON, no UTF, or nested too deeply.
    """
    try:
        return json.loads(content, parse_constant=parse_constant)
    except (ValueError, RecursionError) as error:
        raise ProbeError(f"{where} is not valid JSON: {error}" + (f"; {fix}" if fix else "")) from error


def quoted(value: object) -> str:
    """A foreign value as errors show it: cut, and without control characters."""
    return repr(value)[:MOST]


def problems(error: ValidationError) -> str:
    """What is wrong with values, in one line of bounded length."""
    return "; ".join(
        ": ".join((*filter(None, [quoted(".".join(map(str, one["loc"])))[1:-1]]), one["msg"][: 2 * MOST]))
        for one in error.errors()[:5]
    )
