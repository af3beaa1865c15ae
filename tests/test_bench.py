"""`pika bench` measures on small inputs what it measures on large ones; how fast is not a test's business."""

import json

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from offline.bench import cli, policies, training, training_data
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


def test_the_policy_sweep_and_the_pandas_loop_come_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["policies", "--problems", "60", "--knobs", "20", "--draws", "30"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["same"]
    assert last["ratio"] > 0
    assert last["parity_saving"]["low"] <= last["parity_saving"]["value"] <= last["parity_saving"]["high"]


def test_a_sweep_that_differs_is_told_from_the_loop() -> None:
    pool, lambdas = policies.synthetic(40, 4, seed=1), np.array([0.0, 0.3, 1.0])
    looped = policies.pandas_loop(pool, lambdas)
    np.testing.assert_allclose(policies.measured(pool, lambdas)[1], looped)
    assert not np.allclose(policies.measured(pool, lambdas / 2)[1], looped)
