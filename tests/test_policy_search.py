from dataclasses import replace

import numpy as np
import pytest

from offline.evaluation.judge import Validation, corrected, judge
from offline.evaluation.sweep import multipliers, of_chosen
from offline.policy_search import SIMPLEST_FIRST, Target, TuneError, accuracy_table, tune
from routing_policies.base import FloatArray, build

TIER = (1e-6, 4e-6, 8e-5)


def calibrated(n: int = 800, seed: int = 0, rollouts: int = 8, tier: tuple[float, ...] = TIER) -> Validation:
    """Problems of one latent difficulty, three arms, and outcomes drawn with exactly the predicted probabilities."""
    rng = np.random.default_rng(seed)
    skill = np.array([0.0, 2.0, 3.0]) - rng.normal(0, 2, (n, 1)) + rng.normal(0, 1, (n, 3))
    success = 1 / (1 + np.exp(-skill))
    cost = np.array(tier) * rng.uniform(0.7, 1.3, (n, 1))
    return Validation(success, cost, rng.binomial(rollouts, success) / rollouts, tier, prefill_usd=1e-7)


DATA = calibrated()


def test_always_best_is_met_for_less() -> None:
    tuning = tune(DATA, Target.parse("accuracy=always-best"))
    best = int(DATA.success.mean(axis=0).argmax())
    assert tuning.best_arm == best == 2
    assert tuning.always_best.predicted_accuracy == pytest.approx(DATA.success[:, 2].mean())
    assert tuning.always_best.measured_accuracy == pytest.approx(DATA.success_rate[:, 2].mean())
    assert tuning.always_best.cost_usd == pytest.approx(DATA.cost[:, 2].mean())
    assert [candidate.policy for candidate in tuning.candidates] == list(SIMPLEST_FIRST)
    for candidate in tuning.candidates:
        assert candidate.accuracy >= tuning.always_best.accuracy - 1e-9
        assert candidate.saving_vs_best == pytest.approx(1 - candidate.cost_usd / tuning.always_best.cost_usd)
        low, high = candidate.measured_interval
        assert low < candidate.measured_accuracy < high
        assert low < candidate.predicted_accuracy < high
    assert tuning.chosen.saving_vs_best > 0.4


def test_what_is_reported_is_what_the_policy_does() -> None:
    tuning = tune(DATA, Target.parse("accuracy=0.8"))
    rows = np.arange(len(DATA.success))
    for candidate in tuning.candidates:
        policy = build(candidate.policy, candidate.knobs | {"table": tuning.table}, DATA.tier_cost)
        arms = policy.choose(DATA.success, DATA.cost)
        assert candidate.predicted_accuracy == pytest.approx(DATA.success[rows, arms].mean())
        assert candidate.measured_accuracy == pytest.approx(DATA.success_rate[rows, arms].mean())
        assert candidate.cost_usd == pytest.approx(DATA.cost[rows, arms].mean() + DATA.prefill_usd)


def test_no_policy_is_cheaper_than_target_accuracy() -> None:
    for target in ("accuracy=0.7", "accuracy=0.8", "accuracy=0.85"):
        costs = {candidate.policy: candidate.cost_usd for candidate in tune(DATA, Target.parse(target)).candidates}
        assert costs["target_accuracy"] <= 1.02 * min(costs.values())


def test_a_cost_target_is_kept_and_spent() -> None:
    tuning = tune(DATA, Target.parse("cost=2e-5"))
    for candidate in tuning.candidates:
        assert candidate.cost_usd <= 2e-5 * (1 + 1e-6)
    assert tuning.chosen.cost_usd > 1.9e-5
    assert tuning.chosen.accuracy > tune(DATA, Target.parse("cost=1e-5")).chosen.accuracy


def test_the_simplest_policy_within_noise_is_chosen() -> None:
    tuning = tune(DATA, Target.parse("accuracy=0.8"))
    assert tuning.chosen.policy == "utility"
    assert tune(DATA, Target.parse("accuracy=0.8"), ["target_accuracy", "utility"]).chosen.policy == "utility"


def test_a_policy_that_is_clearly_dearer_is_not_chosen() -> None:
    # Arm 1 costs as much as arm 2 on odd problems and nothing on even ones; only expected cost tells.
    n = 1000
    success = np.tile([0.2, 0.8], (n, 1))
    cost = np.column_stack([np.zeros(n), np.tile([1e-5, 1e-3], n // 2)])
    data = Validation(success, cost, success, (0.0, 5e-4))
    tuning = tune(data, Target.parse("accuracy=0.5"), ["utility", "target_accuracy"])
    assert tuning.chosen.policy == "target_accuracy"


@pytest.mark.parametrize(
    ("target", "message"), [("accuracy=1", "accuracy is at most 0."), ("cost=0", "costs at least")]
)
def test_a_target_out_of_reach_says_what_can_be_had(target: str, message: str) -> None:
    with pytest.raises(TuneError, match=message):
        tune(DATA, Target.parse(target))


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy=", "accuracy=best", "accuracy=1.2", "cost=-1", "cost=nan", "x=1"]
)
def test_targets_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no target: accuracy=always-best"):
        Target.parse(text)


def test_one_arm_and_arms_alike_have_a_table_too() -> None:
    one = Validation(DATA.success[:, :1], DATA.cost[:, :1], DATA.success_rate[:, :1], TIER[:1])
    accuracy = corrected(one.success[:, 0], one.success_rate[:, 0])
    assert tune(one, Target.parse("accuracy=always-best")).table == [(round(accuracy, 6), 0.0)]
    alike = Validation(DATA.success, np.ones((800, 3)), DATA.success_rate, (1.0, 1.0, 1.0))
    assert tune(alike, Target.parse("accuracy=always-best")).chosen.accuracy > 0.8


def test_the_best_arm_is_not_the_one_that_its_probe_flatters() -> None:
    data = Validation(np.tile([0.9, 0.8], (400, 1)), np.ones((400, 2)), np.tile([0.5, 0.8], (400, 1)), (1.0, 2.0))
    assert data.best_arm == 1
    assert data.accuracy(np.ones(400, dtype=np.intp)) == pytest.approx(0.8)


def test_corrected_accuracy_is_at_most_one() -> None:
    """On a handful of problems, what choosing gains seems to be more than is left to gain."""
    success = np.array([[0.74, 0.70], [0.74, 0.745]] * 2)
    success_rate = np.array([[1.0, 0.0], [0.0, 1.0]] * 2)
    data = Validation(success, np.tile([2e-6, 1e-6], (4, 1)), success_rate, (2e-6, 1e-6))
    assert data.accuracy(np.array([0, 1, 0, 1])) == 1
    assert tune(data, Target.parse("accuracy=always-best")).table[-1][0] <= 1


@pytest.mark.parametrize("seed", range(8))
def test_the_table_lands_any_target_whatever_the_noise(seed: int) -> None:
    """Where noise makes accuracy stand still along the frontier, knots are still set behind."""
    data = calibrated(2000, seed)
    table = accuracy_table(data)
    assert len(table) == 50
    for target in np.linspace(table[0][0] + 0.005, table[-1][0] - 0.005, 40):
        arms = build("target_accuracy", {"accuracy": float(target), "table": table}, TIER).choose(
            data.success, data.cost
        )
        assert data.accuracy(arms) == pytest.approx(target, abs=0.006)


@pytest.mark.parametrize("seed", range(3))
def test_the_table_lands_any_target(seed: int) -> None:
    tuned, fresh = calibrated(4000, seed), calibrated(20_000, 100 + seed)
    known = replace(tuned, success_rate=tuned.success)
    table = accuracy_table(known)
    assert 25 <= len(table) <= 50
    assert (np.diff(table, axis=0) * [1, -1] > 0).all()
    for target in np.linspace(table[0][0] + 0.01, table[-1][0] - 0.01, 12):
        policy = build("target_accuracy", {"accuracy": float(target), "table": table}, TIER)
        for data, tolerance in ((known, 0.005), (fresh, 0.015)):
            arms = policy.choose(data.success, data.cost)
            assert of_chosen(data.success, arms).mean() == pytest.approx(target, abs=tolerance)
        assert not policy.infeasible(known.success, arms).any()


def test_probes_that_flatter_a_cheap_arm_do_not_fool_the_search() -> None:
    """The probes promise .08 too much of the middle arm: judged by predictions alone, accuracy would be lost."""
    flattery = np.array([0, 0.08, 0])
    tuned, fresh = calibrated(800, 5), calibrated(20_000, 6)
    probes = replace(tuned, success=np.minimum(tuned.success + flattery, 1))
    trusting = replace(probes, success_rate=probes.success)
    lost = []
    for data in (probes, trusting):
        tuning = tune(data, Target.parse("accuracy=always-best"), ["utility"])
        arms = build("utility", tuning.chosen.knobs, TIER).choose(np.minimum(fresh.success + flattery, 1), fresh.cost)
        lost.append(fresh.success[:, 2].mean() - of_chosen(fresh.success, arms).mean())
    assert lost[0] < 0.012
    assert lost[1] > 0.03


def test_only_residuals_beyond_noise_correct() -> None:
    rng = np.random.default_rng(0)
    predicted = np.full(10_000, 0.6)
    noise = rng.normal(0, 0.3, 10_000)
    noise -= noise.mean()
    assert corrected(predicted, predicted + noise + 0.002) == pytest.approx(0.6)  # standard error .003
    assert corrected(predicted, predicted + noise - 0.006) == pytest.approx(0.6 - 0.006 * 0.75, abs=1e-4)
    assert corrected(predicted, predicted - 0.1) == pytest.approx(0.5)
    assert corrected(predicted, predicted) == pytest.approx(0.6)


def test_multipliers_are_where_choices_change() -> None:
    success: FloatArray = np.array([[0.5, 0.7], [0.6, 0.5]])
    # Row 0 draws level at .2 / .1 = 2; row 1 never prefers the dearer arm.
    np.testing.assert_array_equal(multipliers(success, np.array([0.1, 0.2])), [0, 2, 4])


def test_knobs_spread_as_they_do_over_fresh_problems() -> None:
    """What resampled problems tell of a knob's spread is near to what fresh sets of as many problems show."""
    told = tune(DATA, Target.parse("accuracy=0.8"), ["cascade"]).candidates[0].spread
    assert told is not None
    fresh = [tune(calibrated(seed=seed), Target.parse("accuracy=0.8"), ["cascade"]) for seed in range(100, 112)]
    knobs = [tuning.candidates[0].knobs["thresholds"] for tuning in fresh]
    low, high = told.knob
    assert low <= tune(DATA, Target.parse("accuracy=0.8"), ["cascade"]).candidates[0].knobs["thresholds"] <= high
    assert 0.3 < np.std(knobs) / ((high - low) / 4) < 3
    assert 0 < told.saving_sd < 0.1


def test_settings_are_judged_in_resampled_sets_as_in_sets_of_their_own() -> None:
    """Weights of a set drawn with replacement come to the same as the set itself, problems repeated."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(800, size=800)
    weights = np.bincount(drawn, minlength=800)[None] / 800
    arms = np.stack([(DATA.success - mu * DATA.cost).argmax(axis=1) for mu in (0.0, 1e3, 1e4)])
    accuracy, cost, best = judge(DATA, arms, weights)
    rows = replace(DATA, success=DATA.success[drawn], cost=DATA.cost[drawn], success_rate=DATA.success_rate[drawn])
    own_accuracy, own_cost, own_best = judge(rows, arms[:, drawn])
    np.testing.assert_allclose(accuracy, own_accuracy)
    np.testing.assert_allclose(cost, own_cost)
    np.testing.assert_allclose(best, own_best)
    single = np.full(800, rows.best_arm)
    p, rate = of_chosen(rows.success, single), of_chosen(rows.success_rate, single)
    assert own_best[0] == pytest.approx(corrected(p, rate))
    gain = of_chosen(rows.success, arms[1][drawn]) - p, of_chosen(rows.success_rate, arms[1][drawn]) - rate
    assert own_accuracy[0, 1] == pytest.approx(corrected(p, rate) + corrected(*gain))
