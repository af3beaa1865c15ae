"""`pika train --dry-run`: what would be read, before and after it is."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from offline.train import main
from tests.support.probes import NANO_POOL


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    frame = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    frame = frame[frame["arm"] == "nano-small"].groupby("split").head(120)
    frame.to_parquet(tmp_path / "rollouts.parquet")
    words = [str(NANO_POOL / "pool.yaml"), "--data", str(tmp_path / "rollouts.parquet"), "--arms", "nano-small"]
    return [*words, "--out", str(tmp_path / "probes"), "--cache", str(tmp_path / "cache"), "--device", "cpu"]


def told(words: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*words, "--dry-run"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_nothing_is_written_and_what_is_there_is_known(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words += ["--probe-model", str(NANO_POOL / "nano-small"), "--layers", "1,2", "--positions", "-1"]
    before = told(words, capsys)
    assert [file.name for file in tmp_path.iterdir()] == ["rollouts.parquet"]
    assert before["problems"] == {"train": 120, "validation": 120, "test": 120}
    reads = before["activations"]
    assert (reads["prompts"], reads["layers"], reads["positions"], reads["cached"]) == (360, [1, 2], [-1], False)
    assert reads["seconds"] > 0
    assert main(words) == 0
    [folder] = (tmp_path / "cache").iterdir()
    after = told(words, capsys)["activations"]
    assert (after["cached"], after["seconds"]) == (True, 0)
    assert after["gb"] * 1e9 == sum(file.stat().st_size for file in folder.iterdir())
    assert after["gb"] == pytest.approx(reads["gb"], rel=0.01)


def test_text_probes_read_no_activations(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert told([*words, "--kind", "tfidf"], capsys)["activations"] is None


def test_what_would_fail_fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--dry-run"]) == 2
    assert "--probe-model is missing" in capsys.readouterr().err
