"""Colours and dashes, the same in plots and pages. Told apart without colour vision, and in grey by their dashes.

Hues follow Okabe & Ito, Color Universal Design, 2008; each has a lighter twin for dark pages.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from offline.report.model import Method

LIGHT_DARK = {
    "ink": ("#1b1b1f", "#e9e7e2"),
    "mute": ("#6a6a73", "#9c9ba3"),
    "rule": ("#dddce0", "#37373f"),
    "paper": ("#fefefe", "#151518"),
    "blue": ("#0a6cb0", "#5cb3ee"),
    "vermilion": ("#cc5500", "#f58b4c"),
    "green": ("#00805d", "#3ccb9f"),
    "plum": ("#a8427c", "#e795c3"),
    "ochre": ("#946300", "#e8b649"),
    "violet": ("#5a4fb0", "#a79df2"),
    "tan": ("#7d6443", "#c7a97f"),
}
"""By name, on a light page and on a dark one."""

HUES = ("blue", "vermilion", "green", "plum", "ochre", "violet")
DASHES = ((), (6.0, 2.5), (2.0, 2.0), (7.0, 2.0, 1.5, 2.0))
"""On, off, on, off, in points."""


@dataclass(frozen=True)
class Style:
    colour: str
    """A name in LIGHT_DARK."""
    dash: tuple[float, ...]
    width: float


def styles(methods: Sequence[Method]) -> dict[str, Style]:
    """By method: a hue per policy; what they are compared with is grey, tan or ink, and dashed or thin."""
    found: dict[str, Style] = {}
    counts: dict[str, int] = {}
    for method in methods:
        i = counts.get(method.group, 0)
        counts[method.group] = i + 1
        if method.group == "policy":
            found[method.name] = Style(HUES[i % len(HUES)], DASHES[i // len(HUES) % len(DASHES)], 2.0)
        else:
            colour = {"baseline": "tan", "control": "mute", "oracle": "ink", "single": "ink"}[method.group]
            found[method.name] = Style(colour, DASHES[(i + 1) % len(DASHES)], 1.2)
    return found
