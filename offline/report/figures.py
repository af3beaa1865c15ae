"""Numbers as every page and table of a report shows them: formatted once, here."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from offline.report.model import Interval

MINUS, DASH = "\N{MINUS SIGN}", "\N{EN DASH}"
NAMES = {"lambda": "\N{GREEK SMALL LETTER LAMDA}", "mu": "\N{GREEK SMALL LETTER MU}"}


@dataclass(frozen=True)
class Figure:
    """A number, and how it is written."""

    value: float | None
    text: str
    low: float | None = None
    high: float | None = None
    interval: str = ""
    """Both ends of the 95% interval; empty where there is none."""
    best: bool = False
    """Whether it is the best of its column."""


@dataclass(frozen=True)
class Unit:
    """How numbers of one kind are written: scaled, with so many decimals."""

    scale: float = 1.0
    decimals: int | None = 3
    """None: three significant digits."""
    signed: bool = False

    def text(self, value: float) -> str:
        scaled = value * self.scale
        decimals = _decimals(scaled) if self.decimals is None else self.decimals
        rounded = round(scaled, decimals) + 0.0  # no -0.0
        return f"{rounded:{'+' if self.signed and rounded else ''},.{decimals}f}".replace("-", MINUS)

    def figure(self, value: Interval | float | None) -> Figure:
        if value is None:
            return Figure(None, DASH)
        if not isinstance(value, Interval):
            return Figure(value, self.text(value))
        low, high = self.text(value.low), self.text(value.high)
        return Figure(value.value, self.text(value.value), value.low, value.high, f"[{low}, {high}]")


PERCENT = Unit(100, 1)
POINTS = Unit(100, 1, signed=True)
RATIO = Unit()
FINE = Unit(decimals=4)
WHOLE = Unit(decimals=0)


@dataclass(frozen=True)
class Money:
    """USD, per so many queries that the dearest way of answering costs at least one."""

    per: str
    unit: Unit

    @classmethod
    def of(cls, usd_per_query: Sequence[float]) -> "Money":
        dearest = max(usd_per_query, default=0.0)
        for queries, per in ((1, "query"), (1_000, "1,000 queries")):
            if dearest * queries >= 1:
                return cls(f"USD per {per}", Unit(queries, None))
        return cls("USD per million queries", Unit(1_000_000, None))


def _decimals(value: float) -> int:
    if value == 0:
        return 0
    return min(max(2 - math.floor(math.log10(abs(value))), 0), 9)


def knob(value: JsonValue) -> str:
    """A knob's value, as short as it can be read."""
    if isinstance(value, Mapping):
        named = {name: one for name, one in value.items() if name != "variant"}  # which stands in the method's label
        return ", ".join(f"{NAMES.get(name, name)} = {knob(one)}" for name, one in named.items()) or DASH
    if isinstance(value, list | tuple):
        return f"({', '.join(map(knob, value))})"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    return DASH if value is None else str(value)
