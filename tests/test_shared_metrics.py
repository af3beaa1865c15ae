"""Files of several workers, read as one."""

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from server.workers import shared_metrics
from server.workers.shared_metrics import Recent, Shared, shared_folder


def test_recent_numbers_are_those_of_all_workers(tmp_path: Path) -> None:
    first, second = (Recent(Shared(tmp_path, slot, workers=2)) for slot in (0, 1))
    first.add(1.0)
    second.add(2.0)
    assert sorted(first.values()) == sorted(second.values()) == [1.0, 2.0]
    for number in range(shared_metrics.RECENT_PROMPTS):
        first.add(float(number))
    assert len(second.values()) == shared_metrics.RECENT_PROMPTS // 2 + 1
    assert sorted(Recent(Shared(tmp_path, 0, workers=2)).values()) == sorted(second.values()), "a successor goes on"
    alone = Recent(None)
    alone.add(3.0)
    np.testing.assert_array_equal(alone.values(), [3.0])


def test_only_folders_whose_parent_is_dead_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / f"{shared_metrics.PREFIX}dead"
    dead.mkdir()
    with shared_folder() as living:
        an_hour_ago = time.time() - 3600
        for folder in (dead, living):
            os.utime(folder, (an_hour_ago, an_hour_ago))
        with shared_folder() as other:
            assert other.is_dir()
            assert living.is_dir()
            assert not dead.exists()
    assert not list(tmp_path.iterdir())
