"""`pika bench scoring` measures on few prompts what it measures on many; how fast is not a test's business."""

import json
from pathlib import Path

import numpy as np
import pytest

from offline.bench import scoring
from offline.bench.scoring_load import ideal_queue
from offline.bench.scoring_model import LENGTHS, make, prompts

KEYS = {
    "ratio_vs_reference", "ratio_vs_floor", "capacity_prompts_s", "p99_vs_ideal_queue", "goodput_at_120_percent",
    "service_ms_batch1", "shared_prefix_ratio", "health_p99_ms",
}  # fmt: skip


def test_the_last_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scoring.main(["--shape", "nano", "--quick", "--plot", str(tmp_path / "plot.png")]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == KEYS
    assert all(value > 0 for value in found.values())
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_an_ideal_queue_loses_no_time() -> None:
    arrivals, service = np.array([0.0, 1.0, 1.5, 9.0]), np.array([2.0, 1.0, 1.0, 0.5])
    np.testing.assert_allclose(ideal_queue(arrivals, service), [2.0, 2.0, 2.5, 0.5])


def test_prompts_are_of_the_lengths_that_are_stated(tmp_path: Path) -> None:
    model = make("nano", None, "float32", tmp_path)
    lengths = [len(prompt) for prompt in prompts(model, 2000, seed=0)]
    assert (min(lengths), max(lengths)) == LENGTHS
    assert abs(np.mean(lengths) - np.mean(LENGTHS)) < 5
    assert model.artifact.probe.sites[0].layer == model.layer


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scoring.main(["--shape", str(tmp_path)]) == 2
    assert "pika bench scoring: " in capsys.readouterr().err
