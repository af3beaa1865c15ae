"""Baselines, controls and oracles: by hand where small, by what they must not be able to do where drawn."""

from dataclasses import replace

import numpy as np
import pytest

from offline.evaluation import controls, oracles
from offline.evaluation.cascade_search import step_thresholds
from offline.evaluation.evaluation import Evaluation, Known, evaluate
from offline.evaluation.figures import Scale, figures
from offline.evaluation.frontier import frontier
from offline.evaluation.methods import Method
from offline.evaluation.self_consistency import self_consistency, votes
from offline.evaluation.verdict import verdict
from offline.policy_search import SIMPLEST_FIRST, Target
from routing_policies.base import build
from routing_policies.costs import normalise
from tests.support.evaluation import TIER, ask, drawn, samples, trial

PARITY = Target.parse("accuracy=always-best")
SETS = drawn(400, 1, name="train"), drawn(1200, 2, name="validation"), drawn(1200, 3, k=64, name="test")


def run(train: Known | None, validation: Known, test: Known, draws: int = 200) -> Evaluation:
    return evaluate(None if train is None else train.samples, validation, test, ask(draws=draws))


@pytest.fixture(scope="module")
def informed() -> Evaluation:
    return run(*SETS)


def named(found: Evaluation, name: str) -> Method:
    return next(method for method in found.methods if method.name == name)


def test_the_limit_is_chosen_by_one_half_and_judged_by_the_other() -> None:
    """Two answers, one cost: by one half both arms look alike and the first is taken, which the other half finds wrong;
    by the other half the second is taken, which is right. Who chooses and judges on both is always right."""
    made = samples([np.array([[1.0, 0.0]]), np.array([[1.0, 1.0]])], [np.full((1, 2), 1e-6)] * 2)
    known = replace(drawn(1, 0).known, success_rate=made.success_rate)
    about = trial(Known(made, known), best_arm=1)
    assert oracles.limit(about, seed=0).correct.tolist() == [0.5]
    assert oracles.in_sample(about).correct.tolist() == [1.0]


def test_the_research_oracle_takes_the_cheapest_arm_that_is_right() -> None:
    right = [np.array([[0.0], [1.0], [0.0]]), np.array([[1.0], [1.0], [0.0]])]
    usd = [np.full((3, 1), 1.0), np.full((3, 1), 5.0)]
    made = samples(right, usd)
    known = replace(drawn(3, 0).known, success_rate=made.success_rate)
    oracle = oracles.research(trial(Known(made, known), best_arm=1))
    assert oracle.correct.tolist() == [1.0, 1.0, 0.0]
    assert oracle.usd.tolist() == [5.0, 1.0, 1.0]  # none is right on the last: the cheapest
    np.testing.assert_allclose(oracle.mix, [2 / 3, 1 / 3])


def test_no_honest_bound_is_above_true_rates_and_no_method_above_the_limit() -> None:
    """With all rates equal there is nothing to know: the limit gains nothing, the in-sample oracle claims to."""
    rng = np.random.default_rng(0)
    right = [(rng.random((4000, 8)) < 0.6).astype(float) for _ in range(3)]
    made = samples(right, [np.full((4000, 8), 1.0)] * 3)
    known = replace(drawn(4000, 0).known, success_rate=made.success_rate)
    about = trial(Known(made, known), best_arm=0)
    limit, claimed = oracles.limit(about, seed=0), oracles.in_sample(about)
    assert limit.accuracy[0, 0] == pytest.approx(0.6, abs=0.012)
    assert claimed.accuracy[0, 0] > 0.7


def test_with_many_answers_the_limit_is_what_true_rates_allow() -> None:
    known = drawn(1500, 5, k=256)
    about = trial(known)
    limit = oracles.limit(about, seed=0)
    # At no weight of cost: each problem's most probable arm.
    assert limit.accuracy[0, 0] == pytest.approx(known.known.success.max(axis=1).mean(), abs=0.01)


def test_the_shuffled_control_spends_alike_and_knows_nothing(informed: Evaluation) -> None:
    router, shuffled = informed.router, named(informed, "shuffled")
    assert shuffled.usd.mean() == pytest.approx(router.usd.mean(), rel=0.02)
    np.testing.assert_allclose(shuffled.mix, router.mix)
    # What is left is the mean of arms at their shares, the same as of any permutation on average.
    rng = np.random.default_rng(0)
    rate, arms = informed.scale.trial.samples.success_rate, router.arms
    assert arms is not None
    permuted = [rate[np.arange(len(arms)), rng.permutation(arms)].mean() for _ in range(300)]
    assert shuffled.correct.mean() == pytest.approx(np.mean(permuted), abs=0.002)
    assert router.correct.mean() > shuffled.correct.mean() + 0.05


def test_the_random_mixture_lies_on_the_line_at_the_routers_cost() -> None:
    known = drawn(1000, 4)
    rate, usd = known.samples.success_rate.mean(axis=0), known.known.cost.mean(axis=0)
    budget = float(usd[1] + 0.3 * (usd[2] - usd[1]))
    mixture = controls.mixture(trial(known), known.known, budget)
    np.testing.assert_allclose(mixture.mix, [0, 0.7, 0.3], atol=1e-9)
    assert mixture.correct.mean() == pytest.approx(0.7 * rate[1] + 0.3 * rate[2])


def test_self_consistency_pays_for_all_its_answers() -> None:
    """Where the cheap arm's answers agree they are kept, else the dear arm answers too."""
    answers = [[["7", "7", "7"], ["1", "2", "1"]], [["7"] * 3, ["3"] * 3]]
    right = [np.array([[1.0, 1, 1], [0.0, 0, 0]]), np.ones((2, 3))]
    made = samples(right, [np.full((2, 3), 1.0), np.full((2, 3), 10.0)], answers=answers)
    known = replace(
        drawn(2, 0).known,
        success_rate=made.success_rate,
        success=made.success_rate,
        cost=made.usd,
        tier_cost=(1.0, 10.0),
    )
    about = trial(Known(made, known), best_arm=1)
    found = self_consistency(about, made, PARITY)
    assert found is not None
    # Two answers are enough to tell: they agree on the first problem, not on the second.
    assert found.settings[found.chosen] == {"entropy": 0.0, "answers": 2}
    assert found.correct.tolist() == [1.0, 1.0]
    assert found.usd.tolist() == [2.0, 12.0]
    np.testing.assert_allclose(found.mix, [0.5, 0.5])
    entropy = votes(made.arms[0], answers[0], 3).entropy
    np.testing.assert_allclose(entropy, [0, -(2 / 3) * np.log(2 / 3) - np.log(1 / 3) / 3], atol=1e-12)


def test_self_consistency_needs_two_answers() -> None:
    known = drawn(50, 0, k=1)
    assert self_consistency(trial(known), known.samples, PARITY) is None


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_per_step_are_as_good_as_any_of_a_grid(seed: int) -> None:
    """For some weight of cost, no pair of thresholds on a grid has a higher utility than the best that was found."""
    known = drawn(400, seed).known
    found = step_thresholds(known.success, known.cost, TIER)
    assert len(found) > 10

    def utility(thresholds: list[float], mu: float) -> float:
        arms = build("cascade", {"thresholds": thresholds}, TIER).choose(known.success, known.cost)
        rows = np.arange(len(arms))
        return float((known.success[rows, arms] - mu * known.cost[rows, arms]).mean())

    for mu in (500.0, 2000.0, 8000.0):
        tried = [utility([a, b], mu) for a in np.linspace(0, 1, 21) for b in np.linspace(0, 1, 21)]
        assert max(utility(one, mu) for one in found) >= max(tried) - 0.003


def test_routing_by_what_is_known_beats_the_controls(informed: Evaluation) -> None:
    said = verdict(informed.router, informed.rivals, informed.scale, PARITY)
    assert said["beats_controls"]
    assert said["method"] in SIMPLEST_FIRST
    assert set(said["accuracy_gain_at_equal_cost"]) == {"shuffled", "random_mixture", "length", "tfidf"}
    assert "beats the controls on these 1,200 test problems" in said["sentence"]
    shown = figures(informed.router, informed.scale)
    assert shown["saving"]["low"] > 0.2
    assert shown["limit_share"]["value"] > 0.5


@pytest.mark.parametrize("seed", range(2))
def test_probabilities_that_know_nothing_do_not_beat_the_controls(seed: int) -> None:
    made = [
        drawn(n, 10 * seed + i, informed=False, name=name)
        for i, (n, name) in enumerate([(300, "train"), (600, "validation"), (800, "test")])
    ]
    found = run(*made)
    said = verdict(found.router, found.rivals, found.scale, PARITY)
    assert not said["beats_controls"]
    assert "does not beat the controls" in said["sentence"]


def test_no_knob_reads_test_labels(informed: Evaluation) -> None:
    """The same test problems with their outcomes permuted: all knobs and choices stay, but the oracles'."""
    train, validation, test = SETS
    order = np.random.default_rng(0).permutation(1200)
    arms = tuple(replace(arm, correct=arm.correct[order]) for arm in test.samples.arms)
    rate = test.samples.success_rate[order]
    outcomes = replace(test.samples.outcomes, success_rate=rate)
    permuted = Known(replace(test.samples, outcomes=outcomes, arms=arms), replace(test.known, success_rate=rate))
    found = run(train, validation, permuted)
    assert found.router.name == informed.router.name
    for before, after in zip(informed.methods, found.methods, strict=True):
        assert before.name == after.name
        if before.group != "oracle":
            assert before.settings[before.chosen] == after.settings[after.chosen]
            assert list(before.resampled) == list(after.resampled)
            np.testing.assert_array_equal(before.mix, after.mix)
    assert found.router.correct.mean() < informed.router.correct.mean() - 0.05


def test_one_answer_per_problem_leaves_the_limit_out() -> None:
    found = run(None, drawn(300, 1, k=1, name="v"), drawn(300, 2, k=1, name="t"), draws=50)
    assert {"limit", "self_consistency", "tfidf", "length"}.isdisjoint(method.name for method in found.methods)
    assert any("One answer per problem" in note for note in found.notes)
    assert any("no train problems" in note for note in found.notes)
    assert figures(found.router, found.scale)["limit_share"] is None


def test_utility_in_all_variants_chooses_as_its_formula_says(informed: Evaluation) -> None:
    """The research code's words for the same trade-off come to the same frontier; the knobless ones to one point."""
    known = informed.scale.trial.known
    same = named(informed, "utility").accuracy[0], named(informed, "utility:original").accuracy[0]
    assert abs(same[0].max() - same[1].max()) < 1e-9
    normalized = named(informed, "utility:normalized")
    np.testing.assert_array_equal(normalized.arms, (100 * known.success - normalise(TIER)).argmax(axis=1))
    assert len(normalized.settings) == 1


def test_draws_without_equal_accuracy_save_nothing() -> None:
    """A frontier half as dear that is as accurate as the best arm in every other draw alone."""
    about = trial(drawn(60, 0), draws=100)
    scale = Scale(about, controls.singles(about), None)
    reaches = np.arange(101) % 2 == 0
    accuracy = scale.best_accuracy + np.where(reaches, 0.01, -0.01)
    saving = scale.parity_saving(frontier(scale.best_usd[:, None] / 2, accuracy[:, None]))
    np.testing.assert_allclose(saving, np.where(reaches, 0.5, 0.0))
    # Of the problems as they are it says that there is none.
    assert np.isnan(scale.parity_saving(frontier(scale.best_usd[:, None], scale.best_accuracy[:, None] - 0.01))[0])
