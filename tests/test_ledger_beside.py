"""A large ledger is read by two processes: the same as by one, and whole where the second one fails."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from offline.bench.replay_ledger import fill
from server.ledger import reader
from server.ledger.beside import beside
from server.ledger.database import open_database
from server.ledger.reader import Decisions, read_decisions

COUNT = 3000


def test_what_a_second_process_returns() -> None:
    with beside(math.factorial, 5) as result:
        assert result() == 120


@pytest.mark.parametrize(("work", "given"), [(int, "no number"), (os._exit, 3)], ids=["raises", "dies"])
def test_one_that_fails(work: Callable[[Any], int], given: str | int) -> None:
    with beside(work, given) as result:
        assert result() is None


@pytest.mark.parametrize("fails", [False, True], ids=["two", "second fails"])
def test_two_read_what_one_does(ledger_url: str, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    database = open_database(ledger_url)
    fill(database, COUNT, 0, time.time() - 3600, time.time(), told=0.5)
    alone = read_decisions(database)
    monkeypatch.setattr(reader, "HAND_OVER_ROWS", 1000)
    told: list[tuple[int, int]] = []
    if fails:
        monkeypatch.setattr(reader, "beside", lambda work, *args: beside(os._exit, 3))
    both = read_decisions(database, second_process=True, on_progress=lambda *now: told.append(now))
    database.close()
    for field in fields(Decisions):
        if field.name != "pool":
            np.testing.assert_array_equal(getattr(both, field.name), getattr(alone, field.name), err_msg=field.name)
    assert len(both) == COUNT
    assert [total for _, total in told] == ([2000, 1000] if fails else [2000])
