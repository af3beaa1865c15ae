"""`pika bench scoring` measures on few prompts what it measures on many; how fast is not a test's business."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModel

from offline.bench import scoring, scoring_soak, scoring_ways
from offline.bench.scoring_load import ideal_queue
from offline.bench.scoring_model import LENGTHS, NANO, make, prompts
from tests.support.architectures import ARCHITECTURES

KEYS = {
    "ratio_vs_reference", "ratio_vs_floor", "ratio_vs_batched", "capacity_prompts_s", "p99_vs_ideal_queue",
    "goodput_at_120_percent", "service_ms_batch1", "shared_prefix_ratio", "health_p99_ms",
}  # fmt: skip


def test_the_last_line_is_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scoring.main(["--shape", "nano", "--quick", "--plot", str(tmp_path / "plot.png")]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed.splitlines()[-1])
    assert set(found) == KEYS
    for row in (
        "research code",
        "plain Transformers",
        "batches of 16",
        "this engine",
        "bare matrix",
        "25%",
        "50%",
        "70%",
        "90%",
        "120%",
    ):
        assert row in printed
    assert all(value > 0 for value in found.values())
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_memory_is_watched_over_many_prompts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scoring_soak, "CHUNK", 400)
    assert scoring.main(["--soak", "1200"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) == {"prompts", "settled_mb", "largest_mb", "growth"}
    assert found["prompts"] == 1200
    assert 100 < found["settled_mb"] <= found["largest_mb"] < 5000  # an engine with torch, and little beside it
    assert found["growth"] == pytest.approx(found["largest_mb"] / found["settled_mb"] - 1, abs=1e-3)


def test_an_ideal_queue_loses_no_time() -> None:
    arrivals, service = np.array([0.0, 1.0, 1.5, 9.0]), np.array([2.0, 1.0, 1.0, 0.5])
    np.testing.assert_allclose(ideal_queue(arrivals, service), [2.0, 2.0, 2.5, 0.5])


def test_prompts_are_of_the_lengths_that_are_stated(tmp_path: Path) -> None:
    model = make("nano", None, "float32", tmp_path)
    lengths = [len(prompt) for prompt in prompts(model, 2000, seed=0)]
    assert (min(lengths), max(lengths)) == LENGTHS
    assert abs(np.mean(lengths) - np.mean(LENGTHS)) < 5
    assert model.artifact.probe.sites[0].layer == model.layer


def test_the_loads_have_as_many_arrivals_as_their_figures_need() -> None:
    assert scoring.LOADS == (0.25, 0.5, 0.7, 0.9, 1.2)
    for plan, judged, overload in ((scoring.PLANS["nano"], 2000, 1000), (scoring.LARGE, 500, 200)):
        assert [plan.arrivals(load) for load in scoring.LOADS] == [100, 100, judged, 100, overload]


def test_a_checkpoints_folder_is_read_at_half_its_depth(tmp_path: Path) -> None:
    model = make(str(NANO), None, "float32", tmp_path)
    depth = json.loads((NANO / "config.json").read_text())["num_hidden_layers"]
    assert model.layer == depth // 2
    (prompt,) = prompts(model, 1, seed=0)
    [seconds] = scoring_ways.batch_1(model, [prompt])
    assert seconds > 0


def test_the_floor_multiplies_with_the_experts_that_a_token_goes_to() -> None:
    config = ARCHITECTURES["gpt_oss"]()
    block = AutoModel.from_config(config).layers[0]
    counted = sum(weight.numel() for weight in scoring_ways._products(block, config))
    heads = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
    expert = 3 * config.hidden_size * config.intermediate_size
    assert counted == config.hidden_size * heads + config.num_experts_per_tok * expert


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scoring.main(["--shape", str(tmp_path)]) == 2
    assert "pika bench scoring: " in capsys.readouterr().err
