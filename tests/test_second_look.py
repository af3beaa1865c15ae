"""The cascade that looks at the first answer, against loops and against what looking can and cannot be worth."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from offline.evaluation.evaluation import Known
from offline.evaluation.second_look import Looks, answer, second_look
from offline.policy_search import Target
from server.__main__ import main
from tests.support.evaluation import drawn, trial

NANO_POOL = Path(__file__).parents[1] / "offline/nano_pool"
MIDDLE, BEST = 1, 2
AT_PAR = Target.parse("accuracy=always-best")


def looks(known: Known, sure: float) -> Looks:
    """At the middle arm's answers; sure: 1 knows whether each is right, 0 knows what was known before."""
    prior = known.known.success[:, [MIDDLE]]
    right = known.samples.arms[MIDDLE].correct
    return Looks(MIDDLE, sure * right + (1 - sure) * prior, np.full(right.shape, 1e-8))


def first_answers(of: Looks) -> Looks:
    return Looks(of.arm, of.success[:, :1], of.usd[:, :1])


@pytest.mark.parametrize("mu", [0.0, 2e3, 2e4])
@pytest.mark.parametrize("hope", [0.0, 0.5, 1.0])
def test_each_problem_by_hand(mu: float, hope: float) -> None:
    known = drawn(40, seed=3)
    seen = looks(known, sure=0.7)
    p, cost, samples = known.known.success, known.known.cost, known.samples
    middle = samples.arms[MIDDLE]
    found = answer(seen, known.known, samples, BEST, mu, hope)
    for i in range(40):
        value = [p[i, arm] - mu * cost[i, arm] for arm in range(3)]
        gain = hope * (1 - p[i, MIDDLE]) * max(value[BEST], 0)
        if value[MIDDLE] - mu * 1e-8 + gain > max(value):
            outcomes = []
            for j in range(middle.k):
                usd = middle.input_usd[i] + middle.output_usd[i].mean() + 1e-8
                if seen.success[i, j] < value[BEST]:
                    outcomes.append((samples.success_rate[i, BEST], usd + samples.usd[i, BEST]))
                else:
                    outcomes.append((middle.correct[i, j], usd))
            right, usd = np.mean(outcomes, axis=0)
        else:
            arm = int(np.argmax(value))
            right, usd = samples.success_rate[i, arm], samples.usd[i, arm]
        assert (found.correct[i], found.usd[i]) == pytest.approx((right, usd))
    assert found.mix.sum() == pytest.approx(1)


def test_looking_pays_as_far_as_it_tells_more() -> None:
    validation, test = drawn(1500, seed=1, name="v"), drawn(1500, seed=2, name="t")

    def saved(sure: float) -> tuple[float, float]:
        seen = first_answers(looks(validation, sure)), looks(test, sure)
        method = second_look(trial(test), validation.known, validation.samples, seen, AT_PAR)
        alone = test.samples.usd[:, BEST].mean()
        gain = method.accuracy[0, method.chosen] - test.samples.success_rate[:, BEST].mean()
        return 1 - method.cost_usd[0, method.chosen] / alone, gain

    none, all_ = saved(0.0), saved(1.0)
    assert all_[0] > none[0] + 0.15, "knowing which answers are wrong saves much"
    assert min(none[1], all_[1]) > -0.02


def test_test_problems_do_not_say_whom_to_ask() -> None:
    """What is done on them is the same whatever their success rates are known to be."""
    validation, test = drawn(200, seed=1, name="v"), drawn(200, seed=2, name="t")
    seen = first_answers(looks(validation, 0.7)), looks(test, 0.7)
    turned = replace(test, known=replace(test.known, success_rate=1 - test.known.success_rate))
    assert turned.known.best_arm != test.known.best_arm
    one, other = (second_look(trial(t), validation.known, validation.samples, seen, AT_PAR) for t in (test, turned))
    np.testing.assert_array_equal(one.cost_usd, other.cost_usd)


def test_the_answers_of_a_nano_model_tell_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    ids = frame.drop_duplicates(["split", "problem_id"]).groupby("split")["problem_id"].head(250)
    frame[frame["problem_id"].isin(ids)].to_parquet(tmp_path / "some.parquet")
    words = ["evaluate", str(NANO_POOL / "pool.yaml"), "--data", str(tmp_path / "some.parquet"), "--methods", "utility"]
    words += ["--out", str(tmp_path / "out"), "--draws", "50"]
    assert main([*words, "--look-at", "nano-medum"]) == 2
    assert "nano-medium" in capsys.readouterr().err
    assert main([*words, "--look-at", "nano-medium"]) == 0
    methods = {one["name"]: one for one in json.loads((tmp_path / "out/evaluation.json").read_text())["methods"]}
    looked, shuffled = methods["second_look"], methods["shuffled"]
    assert looked["saving"]["value"] > 0.4
    assert looked["accuracy"]["value"] > shuffled["accuracy"]["value"] + 0.05
