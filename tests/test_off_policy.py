"""Replay: what another policy would have done, and what outcomes can and cannot say of it."""

from typing import Any

import numpy as np
import pytest

from routing_policies.base import FloatArray, IndexArray, PolicyError, build
from routing_policies.off_policy import Estimate, accuracy
from routing_policies.replay import Recorded, always, as_it_was, recorded, replay

TIER = (1e-6, 4e-6, 8e-5)


def traffic(n: int, audit: float, seed: int, flattery: float = 0.0, told: float = 1.0) -> tuple[Recorded, FloatArray]:
    """Requests routed by utility at lambda 0.4, a share of them to any arm; and the true success rates, (n, k).

    Args:
        flattery: by how much of what is lacking the probabilities are too high.
        told: share of the requests that have an outcome.
    """
    rng = np.random.default_rng(seed)
    skill = np.array([0.0, 1.5, 3.0]) - rng.normal(0, 2, (n, 1)) + rng.normal(0, 0.7, (n, 3))
    true = 1 / (1 + np.exp(-skill))
    success = true + flattery * (1 - true)
    cost = np.array(TIER) * rng.uniform(0.7, 1.3, (n, 1))
    everyone = np.ones((n, 3), dtype=np.bool_)
    chosen = build("utility", {"lambda": 0.4}, TIER).choose(success, cost)
    arm = np.where(rng.random(n) < audit, rng.integers(3, size=n), chosen)
    propensity = np.where(arm == chosen, 1 - audit + audit / 3, audit / 3) if audit else np.ones(n)
    rows = np.arange(n)
    outcome = (rng.random(n) < true[rows, arm]).astype(np.float64)
    outcome[rng.random(n) >= told] = np.nan
    paid = 1.5 * cost[rows, arm]
    return recorded(success, cost, everyone, arm, propensity, outcome, paid, np.full(n, 1e-7)), true


def holds(estimate: Estimate, value: float) -> bool:
    return estimate.low <= value <= estimate.high


def test_figures_of_a_policy_by_hand() -> None:
    success = np.array([[0.9, 0.95], [0.2, 0.8], [0.5, 0.6], [0.4, 0.9]])
    cost = np.array([[1.0, 5.0], [2.0, 6.0], [3.0, 7.0], [4.0, 8.0]]) * 1e-6
    allowed = np.array([[True, True], [True, True], [True, False], [True, True]])
    arm = np.array([0, 0, 0, 1])
    paid = np.array([3e-6, 1e-6, np.nan, 9e-6])
    record = recorded(success, cost, allowed, arm, paid_usd=paid, probe_usd=np.full(4, 1e-6))
    found = replay(record, build("max_success", {}, TIER[:2]))
    assert found.mix == (0.25, 0.75)
    assert found.changed == 0.5
    # Two answers of an arm do not tell how its costs stand to what was expected, so what is expected stands.
    assert found.cost_usd == pytest.approx((5 + 6 + 3 + 9) / 4 * 1e-6 + 1e-6)
    assert found.expected_cost_usd == pytest.approx((5 + 6 + 3 + 8) / 4 * 1e-6 + 1e-6)
    assert found.expected_accuracy.value == pytest.approx((0.95 + 0.8 + 0.5 + 0.9) / 4)
    assert found.from_outcomes.says.startswith("no outcomes")
    assert found.saving is not None
    assert found.saving.value == pytest.approx(1 - 27 / 20)
    was = as_it_was(record)
    assert was.saving == Estimate(0, 0, 0)
    assert was.cost_usd == pytest.approx((3 + 1 + 3 + 9) / 4 * 1e-6 + 1e-6)
    assert (was.changed, was.mix) == (0.0, (0.75, 0.25))
    # Who reads no probability pays no prefill; what an arm cannot serve goes where it went.
    second = always(record, 1)
    assert second.cost_usd == pytest.approx((5 + 6 + 3 + 9) / 4 * 1e-6)
    assert second.mix == (0.25, 0.75)
    assert record.best == 1
    assert second.saving_vs_best == Estimate(0, 0, 0)
    assert replay(record, build("min_cost", {}, TIER[:2])).cost_usd == pytest.approx((3 + 1 + 3 + 4) / 4 * 1e-6)


def test_what_answers_cost_beside_what_was_expected_prices_the_others() -> None:
    record, _ = traffic(3000, audit=0.2, seed=0)
    np.testing.assert_allclose(record.cost_ratio, 1.5)
    found = always(record, 2)
    assert found.cost_usd == pytest.approx(1.5 * record.cost[:, 2].mean())
    assert found.expected_cost_usd == pytest.approx(record.cost[:, 2].mean())


def test_the_interval_of_a_saving_is_that_of_resampled_requests() -> None:
    record, _ = traffic(2000, audit=0.1, seed=4)
    policy, rng = build("utility", {"lambda": 1.0}, TIER), np.random.default_rng(0)
    found = replay(record, policy)
    chosen = policy.choose(record.success, record.cost)
    assert record.best == 2

    def usd(arms: IndexArray) -> FloatArray:
        expected = 1.5 * record.cost[np.arange(2000), arms]
        return np.where(arms == record.arm, record.paid_usd, expected)

    best = usd(np.full(2000, 2))
    for saving, against in ((found.saving, record.paid_usd + 1e-7), (found.saving_vs_best, best)):
        assert saving is not None
        drawn = rng.integers(2000, size=(4000, 2000))
        means = (usd(chosen) + 1e-7)[drawn].mean(axis=1) / against[drawn].mean(axis=1)
        low, high = np.quantile(1 - means, [0.025, 0.975])
        assert saving.low == pytest.approx(low, abs=0.1 * (high - low))
        assert saving.high == pytest.approx(high, abs=0.1 * (high - low))


def test_rows_that_lack_a_probability_are_left_out_and_counted() -> None:
    success = np.array([[0.5, 0.9], [np.nan, 0.9], [np.nan, 0.9], [0.5, np.nan]])
    allowed = np.array([[True, True], [True, True], [False, True], [True, False]])
    record = recorded(success, np.ones((4, 2)), allowed, np.array([1, 1, 1, 0]))
    assert (len(record.arm), record.left_out) == (3, 1)
    assert replay(record, build("max_success", {}, (1.0, 2.0))).mix == pytest.approx((1 / 3, 2 / 3))
    with pytest.raises(PolicyError, match="none of the 4 decisions has success probabilities"):
        recorded(np.full((4, 2), np.nan), np.ones((4, 2)), allowed, np.array([1, 1, 1, 0]))
    with pytest.raises(PolicyError, match="same \\(requests, arms\\) matrix"):
        recorded(success, np.ones((4, 3)), allowed, np.array([1, 1, 1, 0]))
    # An arm that the pool does not have is no decision of it.
    assert recorded(success[:1].repeat(2, 0), np.ones((2, 2)), allowed[:2], np.array([1, 7])).left_out == 1


def test_a_fixed_request_stays_where_it_went() -> None:
    success, fixed = np.tile([0.5, 0.9], (4, 1)), np.array([True, False, False, False])
    record = recorded(success, np.ones((4, 2)), np.ones((4, 2), dtype=np.bool_), np.zeros(4, dtype=int), fixed=fixed)
    assert replay(record, build("max_success", {}, (1.0, 2.0))).mix == (0.25, 0.75)


def test_inverse_propensity_is_the_weighted_mean() -> None:
    record, _ = traffic(4000, audit=0.3, seed=3, told=0.5)
    policy = build("utility", {"lambda": 1.5}, TIER)
    above = below = matched = 0.0
    for i, arm in enumerate(policy.choose(record.success, record.cost)):
        if arm == record.arm[i] and not np.isnan(record.outcome[i]):
            above += record.outcome[i] / record.propensity[i]
            below += 1 / record.propensity[i]
            matched += 1
    found = replay(record, policy).from_outcomes
    assert found.inverse_propensity is not None
    assert found.inverse_propensity.value == pytest.approx(above / below)
    assert (found.matched, found.outcomes) == (matched, np.isfinite(record.outcome).sum())
    assert found.unseen == 0


@pytest.mark.parametrize(("name", "knobs"), [("utility", {"lambda": 1.0}), ("max_success", {}), ("min_cost", {})])
@pytest.mark.parametrize("flattery", [0.0, 0.4])
def test_intervals_hold_the_truth_although_routing_chose_and_probes_flatter(
    name: str, knobs: dict[str, Any], flattery: float
) -> None:
    held, robust, off, runs = 0, 0, [], 60
    for seed in range(runs):
        record, true = traffic(6000, audit=0.1, seed=seed, flattery=flattery, told=0.5)
        policy = build(name, knobs, TIER)
        truth = float(true[np.arange(6000), policy.choose(record.success, record.cost)].mean())
        found = replay(record, policy)
        outcomes = found.from_outcomes
        assert outcomes.inverse_propensity is not None
        assert outcomes.doubly_robust is not None
        held += holds(outcomes.inverse_propensity, truth)
        robust += holds(outcomes.doubly_robust, truth)
        off.append(outcomes.doubly_robust.value - truth)
        if flattery:
            assert not holds(found.expected_accuracy, truth)
    assert held >= 0.88 * runs
    assert robust >= 0.88 * runs
    assert abs(np.mean(off)) < 0.02


def test_the_plain_mean_of_what_was_done_flatters_an_arm_that_gets_the_easy_ones() -> None:
    record, true = traffic(40_000, audit=0.1, seed=5)
    small = record.arm == 0
    assert record.outcome[small].mean() > true[:, 0].mean() + 0.1
    found = always(record, 0).from_outcomes.inverse_propensity
    assert found is not None
    assert holds(found, true[:, 0].mean())
    was = as_it_was(record).from_outcomes.inverse_propensity
    assert was is not None
    assert was.value == pytest.approx(record.outcome.mean())


def test_where_nothing_was_left_to_chance_outcomes_cannot_say() -> None:
    record, _ = traffic(4000, audit=0, seed=6)
    found = replay(record, build("max_success", {}, TIER)).from_outcomes
    assert (found.inverse_propensity, found.doubly_robust) == (None, None)
    assert found.unseen > 0.3
    assert "outcomes cannot say" in found.says
    assert "audit: {share: 0.01}" in found.says
    # The policy that was on is judged by its own outcomes, chance or not.
    same = replay(record, build("utility", {"lambda": 0.4}, TIER)).from_outcomes.inverse_propensity
    assert same is not None
    assert same.value == pytest.approx(record.outcome.mean())


def test_what_a_few_requests_leave_open_widens_the_interval() -> None:
    record, _ = traffic(4000, audit=0, seed=7)
    near = build("utility", {"lambda": 0.42}, TIER)
    chosen = near.choose(record.success, record.cost)
    changed = float((chosen != record.arm).mean())
    assert 0 < changed < 0.1
    found = replay(record, near).from_outcomes
    assert found.unseen == pytest.approx(changed)
    stays = record.outcome[chosen == record.arm]
    assert found.inverse_propensity is not None
    assert found.inverse_propensity.low <= (1 - changed) * stays.mean()
    assert found.inverse_propensity.high >= (1 - changed) * stays.mean() + changed


def test_a_canary_between_two_arms_says_nothing_of_a_third() -> None:
    rng, n = np.random.default_rng(8), 5000
    arm = rng.integers(2, size=n)
    success, cost = np.tile([0.5, 0.6, 0.9], (n, 1)), np.ones((n, 3))
    everyone, outcome = np.ones((n, 3), dtype=np.bool_), (rng.random(n) < 0.55).astype(np.float64)
    record = recorded(success, cost, everyone, arm, np.full(n, 0.5), outcome)
    found = always(record, 2).from_outcomes
    assert found.inverse_propensity is None
    assert "outcomes cannot say" in found.says
    assert always(record, 1).from_outcomes.inverse_propensity is not None


def test_a_few_outcomes_are_too_few() -> None:
    record, _ = traffic(3000, audit=0.01, seed=9, told=0.2)
    found = always(record, 2).from_outcomes
    assert found.inverse_propensity is None
    assert found.says.startswith("too few outcomes")


def test_one_arms_accuracy_over_all_prompts_with_an_interval_that_holds_it() -> None:
    """Routing sends an arm the prompts that suit it; nine of ten are as likely right there, two of ten elsewhere."""
    share, held = 0.3, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        suits = rng.random(1500) < 0.5
        audited = rng.random(1500) < share
        chosen = np.where(audited, rng.random(1500) < 0.5, suits)
        propensity = share / 2 + (1 - share) * suits
        outcome = (rng.random(1500) < np.where(suits, 0.9, 0.2)).astype(np.float64)
        found = accuracy(outcome[chosen], propensity[chosen])
        assert found is not None
        assert outcome[chosen].mean() > 0.7
        assert found.low <= found.value <= found.high
        held += found.low <= 0.55 <= found.high
    assert held >= 180
    assert accuracy(np.ones(29), np.ones(29)) is None
    assert accuracy(np.ones(0), np.ones(0)) is None
    sure = accuracy(np.ones(40), np.full(40, 0.5))
    assert sure is not None
    assert (sure.value, sure.high) == (1, 1)
    assert 0.85 < sure.low < 1
