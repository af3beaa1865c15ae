"""What the documentation says of probes from Python, as it stands."""

import doctest
from pathlib import Path

import pytest

import probes


def test_the_ten_lines_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    result = doctest.testmod(probes)
    assert result.attempted >= 8
    assert result.failed == 0
