"""`pika bench` measures on small inputs what it measures on large ones; how fast is not a test's business."""

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from offline.bench import cli, training, training_data
from offline.bench.training_data import Shape
from probes.card import Site

SMALL = Shape(train=160, validation=60, layers=3, positions=2, d_model=12)


def test_both_sides_choose_alike_on_random_activations() -> None:
    with threadpool_limits(1):
        compared = training.large(SMALL, seed=0)
    assert compared.same_choice
    assert len(compared.ours.choices) == 2
    assert compared.peak_memory is not None
    assert compared.peak_memory > 1


@pytest.fixture(scope="module")
def nano() -> training.Comparison:
    with threadpool_limits(1):  # small products on shared cores: a second thread costs seconds
        return training.nano(200, 80)


def test_both_sides_choose_alike_on_the_nano_pool(nano: training.Comparison) -> None:
    assert nano.same_choice
    assert len(nano.ours.choices) == 6


def test_the_last_line_is_json(
    nano: training.Comparison, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(training, "nano", lambda *_: nano)  # measured once
    monkeypatch.setattr(training, "LARGE", SMALL)
    for options in ([], ["--quick"]):
        assert cli.main(["training", *options]) == 0
        last = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert last.keys() == {"ratio", "ratio_large", "same_choice", "peak_memory_ratio", "seconds"}
        assert last["ratio"] > 0
        assert (last["ratio_large"] is None) == bool(options)


def test_a_sites_random_activations_do_not_depend_on_the_others() -> None:
    planted, other = Site(layer=1, position=-1), Site(layer=2, position=-2)
    whole = training_data.random(SMALL, 0, planted).train["regression"]
    part = training_data.random(SMALL, 0, planted, [other]).train["regression"]
    np.testing.assert_array_equal(whole.inputs.activations[other], part.inputs.activations[other])
    np.testing.assert_array_equal(whole.labels, part.labels)


def test_the_command_lists_and_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "training" in capsys.readouterr().out
    assert cli.main(["speed"]) == 2
    assert "one of: training" in capsys.readouterr().err
