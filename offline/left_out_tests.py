"""Tests of programs that rollouts leave out for their length, as a problem's metadata tell: `tests_left_out`."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LeftOut:
    problems: int
    """That lack some of their tests."""
    tests: int

    @property
    def sentence(self) -> str:
        return (
            f"{self.problems:,} problems are judged without their longest tests, {self.tests:,} in all: an answer that "
            "only those would refuse counts as right."
        )


def left_out(metadata: Iterable[Any]) -> LeftOut:
    """
    Args:
        metadata: of each problem once, as rollouts keep it: JSON text or None; anything else counts as nothing.
    """
    counts = [count for count in map(_count, metadata) if count > 0]
    return LeftOut(len(counts), sum(counts))


def _count(text: Any) -> int:
    try:
        value = json.loads(text).get("tests_left_out") if isinstance(text, str) else None
    except (ValueError, AttributeError):
        return 0
    return value if isinstance(value, int) else 0
