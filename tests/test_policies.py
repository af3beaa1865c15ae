import pkgutil
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import routing_policies
from routing_policies.base import NAMES, Policy, PolicyError, build, load
from routing_policies.costs import normalise
from routing_policies.random import Random

TIER = (1.0, 3.0, 5.0)  # normalised: 0, .5, 1
TABLE = [(0.6, 8.0), (0.7, 4.0), (0.8, 1.0), (0.9, 0.0)]
NEEDED: dict[str, Any] = {"accuracy": 0.75, "table": TABLE, "seed": 7}
POLICIES = sorted(module.name for module in pkgutil.iter_modules(routing_policies.__path__))
POLICIES = [name for name in POLICIES if name not in ("base", "costs", "off_policy", "replay")]


def choose(policy: Policy, success: Any, cost: Any = None, allowed: Any = None) -> list[int]:
    p = np.asarray(success, dtype=np.float64)
    c = np.broadcast_to(TIER if cost is None else cost, p.shape).astype(np.float64)
    arms = policy.choose(p, c, None if allowed is None else np.asarray(allowed, dtype=np.bool_))
    return [int(arm) for arm in arms]


@st.composite
def requests(draw: st.DrawFn) -> tuple[Any, Any, Any, tuple[float, ...]]:
    """Success, cost, allowed and tier cost of a few prompts over up to five arms."""
    n, k = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    success = draw(arrays(np.float64, (n, k), elements=st.floats(0, 1, width=16)))
    cost = draw(arrays(np.float64, (n, k), elements=st.floats(0, 1, width=16)))
    allowed = draw(arrays(np.bool_, (n, k)))
    allowed[np.arange(n), draw(arrays(np.intp, n, elements=st.integers(0, k - 1)))] = True
    tier = tuple(draw(st.lists(st.floats(0.01, 1), min_size=k, max_size=k)))
    return success, cost, allowed, tier


# The contract, of every policy.


@pytest.mark.parametrize("name", POLICIES)
@given(request=requests())
def test_the_chosen_arm_is_allowed(name: str, request: Any) -> None:
    success, cost, allowed, tier = request
    policy = build(name, NEEDED, tier)
    arms = policy.choose(success, cost, allowed)
    assert arms.shape == (len(success),)
    assert allowed[np.arange(len(arms)), arms].all()
    assert policy.infeasible(success, arms).shape == arms.shape


@pytest.mark.parametrize("name", POLICIES)
@given(request=requests())
def test_single_requests_choose_as_a_batch_does(name: str, request: Any) -> None:
    success, cost, allowed, tier = request
    batch = build(name, NEEDED, tier).choose(success, cost, allowed)
    one_by_one = build(name, NEEDED, tier)
    rows = [one_by_one.choose(success[[i]], cost[[i]], allowed[[i]])[0] for i in range(len(success))]
    assert batch.tolist() == rows


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "random"])
def test_ties_go_to_the_first_allowed_arm(name: str) -> None:
    policy = build(name, NEEDED | {"thresholds": 0.4}, (1.0, 1.0, 1.0))
    assert choose(policy, [[0.5, 0.5, 0.5]] * 2, [1, 1, 1], [[True] * 3, [False, True, True]]) == [0, 1]


@pytest.mark.parametrize("name", POLICIES)
def test_nan_of_an_allowed_arm_is_an_error(name: str) -> None:
    policy = build(name, NEEDED, TIER)
    with pytest.raises(PolicyError, match="costs of allowed arms must be finite"):
        choose(policy, [[0.5, 0.5, 0.5]], [1, np.nan, 1])
    if policy.needs_success:
        with pytest.raises(PolicyError, match="success probabilities of allowed arms must be finite"):
            choose(policy, [[0.5, np.nan, 0.5]])
    else:
        assert choose(policy, [[np.nan] * 3])[0] in range(3)


@pytest.mark.parametrize("name", POLICIES)
def test_nan_of_an_arm_that_is_not_allowed_is_not_read(name: str) -> None:
    assert choose(build(name, NEEDED, TIER), [[np.nan, 0.5, np.nan]], [np.nan, 1, 1], [[False, True, False]]) == [1]


@pytest.mark.parametrize("name", POLICIES)
def test_a_prompt_without_an_allowed_arm_is_an_error(name: str) -> None:
    with pytest.raises(PolicyError, match="at least one arm"):
        choose(build(name, NEEDED, TIER), [[0.5, 0.5, 0.5]], None, [[False] * 3])


@pytest.mark.parametrize("name", POLICIES)
def test_shapes_that_differ_are_an_error(name: str) -> None:
    with pytest.raises(PolicyError, match="same"):
        build(name, NEEDED, TIER).choose(np.zeros((2, 3)), np.zeros((3, 2)))
    with pytest.raises(PolicyError, match="allowed"):
        build(name, NEEDED, TIER).choose(np.zeros((2, 3)), np.zeros((2, 3)), np.ones((1, 3), dtype=np.bool_))


@pytest.mark.parametrize("name", [name for name in POLICIES if load(name).knob])
@pytest.mark.parametrize("bad", [True, "0.5", float("nan"), float("inf"), -0.1, None, 10**400, [0.5], {}])
def test_a_bad_value_of_the_knob_names_it(name: str, bad: Any) -> None:
    knob = load(name).knob or ""
    with pytest.raises(PolicyError, match=f"{knob} must be"):
        build(name, NEEDED | {knob: bad}, TIER)


@pytest.mark.parametrize("name", NAMES)
@given(request=requests())
def test_nothing_is_gained_by_the_same_arm_nor_lost_by_the_chosen_one(name: str, request: Any) -> None:
    success, cost, allowed, tier = request
    policy = build(name, NEEDED, tier)
    arms, than = policy.choose(success, cost, allowed), allowed.argmax(axis=1)
    assert (policy.gain(success, cost, than, than) == 0).all()
    gain = policy.gain(success, cost, arms, than)
    assert np.isfinite(gain).all()
    if name != "cascade":  # which escalates from an arm that is too unsure to one whose threshold is lower, say
        assert (gain >= 0).all()


@pytest.mark.parametrize(
    ("name", "knobs", "gain"),
    [
        ("utility", {"lambda": 0.4}, 0.3 - 0.4 * 0.5),
        ("utility", {"variant": "original", "value": 4.0}, 0.3 - 0.5 / 4),
        ("utility", {"variant": "normalized", "value": 2.0}, 0.3 - 0.5 / 100),
        ("utility", {"variant": "ratio"}, (0.8 / 0.6 - 0.5 / 0.2) / (0.5 / 0.2)),
        ("max_success", {}, 0.3),
        ("min_cost", {}, -2 / 3),
        ("random", {}, 0.0),
        ("min_success", {"min_success": 0.6}, 0.3),
        ("min_success", {"min_success": 0.4}, -2 / 3),
        ("cascade", {"thresholds": 0.6}, 0.3),
        ("cascade", {"thresholds": 0.4}, -2 / 3),
        ("target_accuracy", {"table": [(0.0, 0.1), (1.0, 0.1)], "accuracy": 0.5}, 0.3 - 0.1 * 2),
    ],
)
def test_what_an_arm_gains_over_another(name: str, knobs: dict[str, Any], gain: float) -> None:
    success, cost = np.array([[0.5, 0.8, 0.9]]), np.array([TIER])
    assert build(name, knobs, TIER).gain(success, cost, np.array([1]), np.array([0])) == pytest.approx([gain])


def test_every_named_policy_has_its_file() -> None:
    assert set(NAMES) | {"oracle", "oracle_utility"} == set(POLICIES)


def test_an_unknown_policy_lists_the_known_ones() -> None:
    with pytest.raises(PolicyError, match=r"'greedy'.*utility, cascade"):
        load("greedy")


# Utility.


@pytest.mark.parametrize(
    ("knobs", "success", "arm"),
    [
        ({}, [0.5, 0.75, 0.91], 1),  # .5, .75 - .2, .91 - .4; lambda 0.4
        ({"lambda": 0}, [0.5, 0.75, 0.91], 2),
        ({"lambda": 0.6}, [0.5, 0.75, 0.91], 0),  # .5, .45, .31
        ({"variant": "balance_costs", "lambda": 0.6}, [0.5, 0.75, 0.91], 0),
        ({"variant": "og_0.4", "lambda": 0}, [0.5, 0.75, 0.91], 1),  # the variant's own lambda
        ({"variant": "original", "value": 2}, [0.2, 0.5, 0.65], 1),  # .4, .5, .3
        ({"variant": "original", "value": 10}, [0.2, 0.5, 0.65], 2),  # 2, 4.5, 5.5
        ({"variant": "normalized"}, [0.5, 0.504, 0.513], 2),  # 50, 49.9, 50.3
        ({"variant": "normalized"}, [0.5, 0.504, 0.509], 0),  # 50, 49.9, 49.9
        ({"variant": "ratio"}, [0.19, 0.6, 0.9], 1),  # .95, 1, .9; relative costs .2, .6, 1
        ({"variant": "ratio"}, [0.21, 0.6, 0.9], 0),  # 1.05
        ({"variant": "success_per_dollar"}, [0.4, 0.7, 0.95], 2),  # .8, .817, .9025
        ({"variant": "success_per_dollar"}, [0.43, 0.7, 0.95], 0),  # .9245
        ({"variant": "threshold"}, [0.6, 0.7, 0.8], 0),  # 0, -.5, -1
        ({"variant": "threshold"}, [0.9, 0.3, 0.2], 1),  # 0, .3, .2: as in the research code
        ({"variant": "sigmoid"}, [0.5, 0.73, 0.97], 2),  # .5, .73 - .2449, .97 - .4621
        ({"variant": "sigmoid"}, [0.5, 0.75, 0.96], 1),  # .5, .5051, .4979
    ],
)
def test_utility_variants(knobs: dict[str, Any], success: list[float], arm: int) -> None:
    assert choose(build("utility", knobs, TIER), [success]) == [arm]


def test_utility_scales_cost_over_the_whole_pool_and_not_per_query() -> None:
    policy = build("utility", {"lambda": 1}, TIER)
    # Without arm 0, arm 1 still costs .5 and arm 2 still 1; their expected costs do not matter.
    assert choose(policy, [[0.9, 0.1, 0.55]], [5, 9, 1], [[False, True, True]]) == [1]
    assert choose(policy, [[0.9, 0.1, 0.65]], [5, 9, 1], [[False, True, True]]) == [2]


def test_utility_of_arms_that_cost_the_same_is_success() -> None:
    for variant in ("lambda", "original", "normalized", "sigmoid"):
        assert choose(build("utility", {"variant": variant}, (2.0, 2.0, 2.0)), [[0.5, 0.6, 0.55]]) == [1]


@pytest.mark.parametrize("variant", ["ratio", "success_per_dollar"])
def test_quotients_refuse_a_free_arm(variant: str) -> None:
    with pytest.raises(PolicyError, match="set prices and mean tokens above 0"):
        build("utility", {"variant": variant}, (0.0, 1.0))


@pytest.mark.parametrize("variant", ["gready", "og_", "og_x", "og_-1", "og_nan", "og_inf", 3, None])
def test_unknown_variants_are_errors(variant: Any) -> None:
    with pytest.raises(PolicyError, match=r"variant|lambda must be"):
        build("utility", {"variant": variant}, TIER)


@pytest.mark.parametrize("value", [True, "1", float("nan"), float("inf"), -1, 1e13])
def test_value_out_of_range_is_an_error(value: Any) -> None:
    with pytest.raises(PolicyError, match="value must be"):
        build("utility", {"variant": "original", "value": value}, TIER)


@given(request=requests())
def test_lambda_zero_is_max_success(request: Any) -> None:
    success, cost, allowed, tier = request
    free = build("utility", {"lambda": 0}, tier).choose(success, cost, allowed)
    assert free.tolist() == build("max_success", {}, tier).choose(success, cost, allowed).tolist()


@given(request=requests(), lams=st.tuples(st.floats(0, 5), st.floats(0, 5)))
def test_a_larger_lambda_never_costs_more(request: Any, lams: tuple[float, float]) -> None:
    success, cost, allowed, tier = request
    small, large = (build("utility", {"lambda": lam}, tier).choose(success, cost, allowed) for lam in sorted(lams))
    scaled = normalise(tier)
    assert (scaled[large] <= scaled[small] + 1e-9).all()


@given(request=requests(), lam=st.floats(0, 1e300))
def test_oracle_utility_is_utility(request: Any, lam: float) -> None:
    success, cost, allowed, tier = request
    chosen = [
        build(name, {"lambda": lam}, tier).choose(success, cost, allowed) for name in ("utility", "oracle_utility")
    ]
    assert chosen[0].tolist() == chosen[1].tolist()


def test_a_pool_of_another_size_is_an_error() -> None:
    for name in ("utility", "cascade"):
        with pytest.raises(PolicyError, match="success has 2 arms, tier_cost 3"):
            choose(build(name, {}, TIER), [[0.5, 0.5]], [1, 1])


# Cascade.


def test_cascade_escalates_while_at_or_below_the_threshold() -> None:
    policy = build("cascade", {"thresholds": 0.5}, TIER)
    assert choose(policy, [[0.51, 0.9, 0.9], [0.5, 0.9, 0.9], [0.5, 0.5, 0.1]]) == [0, 1, 2]


def test_cascade_goes_by_tier_cost_and_not_by_place() -> None:
    policy = build("cascade", {"thresholds": [0.9, 0.2]}, (5.0, 1.0, 3.0))  # order: arms 1, 2, 0
    success = [[0.1, 0.95, 0.1], [0.1, 0.8, 0.3], [0.1, 0.8, 0.2]]
    assert choose(policy, success, [1, 1, 1]) == [1, 2, 0]


def test_thresholds_belong_to_the_whole_pools_steps() -> None:
    policy = build("cascade", {"thresholds": [0.9, 0.2]}, TIER)
    without_first = [[False, True, True]] * 2
    assert choose(policy, [[1, 0.3, 0], [1, 0.2, 0]], None, without_first) == [1, 2]
    without_middle = [[True, False, True]] * 2
    assert choose(policy, [[0.91, 1, 0], [0.9, 1, 0]], None, without_middle) == [0, 2]
    assert choose(policy, [[0.1, 0.1, 1]], None, [[True, True, False]]) == [1]  # the last allowed is the fallback


@pytest.mark.parametrize("thresholds", [[0.5], [0.5, 0.5, 0.5], []])
def test_thresholds_of_the_wrong_number_are_an_error(thresholds: list[float]) -> None:
    with pytest.raises(PolicyError, match="thresholds must be one number, or 2 for a pool of 3 arms"):
        build("cascade", {"thresholds": thresholds}, TIER)


@pytest.mark.parametrize("bad", [True, "0.5", float("nan"), 1.5])
def test_each_threshold_is_checked(bad: Any) -> None:
    with pytest.raises(PolicyError, match="thresholds must be a finite number from 0 to 1"):
        build("cascade", {"thresholds": [0.5, bad]}, TIER)


@given(request=requests())
def test_cascade_extremes(request: Any) -> None:
    success, cost, _, tier = request
    success = np.maximum(success, 1e-6)
    assert (build("cascade", {"thresholds": 0}, tier).choose(success, cost) == np.argmin(tier)).all()
    dearest = np.argsort(tier, kind="stable")[-1]
    assert (build("cascade", {"thresholds": 1}, tier).choose(success, cost) == dearest).all()


# Targets.


def test_min_success_takes_the_cheapest_that_meets_the_target() -> None:
    policy = build("min_success", {}, TIER)
    success = np.array([[0.9, 0.8, 0.95], [0.1, 0.8, 0.95], [0.7, 0.1, 0.79]])
    cost = np.array([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    arms = policy.choose(success, cost)
    assert arms.tolist() == [2, 1, 2]
    assert policy.infeasible(success, arms).tolist() == [False, False, True]


def test_min_success_among_allowed_arms() -> None:
    policy = build("min_success", {"min_success": 0.5}, TIER)
    assert choose(policy, [[0.9, 0.4, 0.3]], None, [[False, True, True]]) == [1]


GUARANTEE = [(0.5, 0.5), (0.7, 0.75), (0.8, None), (0.9, 0.99)]


@pytest.mark.parametrize(
    ("target", "threshold"),
    [
        (0, 0),
        (0.1, 0.5),
        (0.5, 0.5),
        (0.51, 0.75),
        (0.7, 0.75),
        (0.75, np.inf),
        (0.8, np.inf),
        (0.85, 0.99),
        (1, np.inf),
    ],
)
def test_min_success_takes_its_threshold_from_the_guarantee(target: float, threshold: float) -> None:
    policy = build("min_success", {"min_success": target, "guarantee": GUARANTEE}, TIER)
    success = np.array([[0.6, 0.74, 0.8], [0.1, 0.99, 0.98], [0.3, 0.2, 0.1]])
    arms = policy.choose(success, np.broadcast_to(TIER, success.shape))
    meets = success >= threshold
    expected = np.where(meets.any(axis=1), meets.argmax(axis=1), success.argmax(axis=1))  # the cheapest stands first
    assert arms.tolist() == expected.tolist()
    assert policy.infeasible(success, arms).tolist() == (~meets.any(axis=1)).tolist()


@pytest.mark.parametrize(
    "table",
    [3, [1, 2], [[0.5]], [[0.5, 0.4]], [[0.5, 0.5], [0.5, 0.6]], [[0.5, float("nan")]], [["a", 1]], [[None, 1]]],
)
def test_a_broken_guarantee_is_an_error(table: Any) -> None:
    with pytest.raises(PolicyError, match="guarantee must"):
        build("min_success", {"guarantee": table}, TIER)


def test_target_accuracy_weighs_expected_cost_by_the_interpolated_mu() -> None:
    policy = build("target_accuracy", {"accuracy": 0.75, "table": TABLE}, TIER)  # mu = 2.5
    assert choose(policy, [[0.5, 0.76, 0.99], [0.5, 0.74, 0.99]], [0, 0.1, 0.2]) == [1, 0]


@pytest.mark.parametrize(("accuracy", "mu"), [(0.1, 8.0), (0.6, 8.0), (0.85, 0.5), (0.9, 0.0), (0.95, 0.0)])
def test_mu_of_an_accuracy(accuracy: float, mu: float) -> None:
    policy = build("target_accuracy", {"accuracy": accuracy, "table": TABLE}, TIER)
    success = np.array([[0.5, 0.5 + 0.1 * mu + 0.01], [0.5, 0.5 + 0.1 * mu - 0.01]])
    arms = policy.choose(success, np.array([[0, 0.1], [0, 0.1]]))
    assert arms.tolist() == [1, 0]
    assert policy.infeasible(success, arms).tolist() == [accuracy > 0.9] * 2


def test_target_accuracy_without_a_table_says_to_tune() -> None:
    with pytest.raises(PolicyError, match="run `pika tune`"):
        build("target_accuracy", {"accuracy": 0.9}, TIER)


def test_target_accuracy_without_a_target_says_so() -> None:
    with pytest.raises(PolicyError, match="needs accuracy"):
        build("target_accuracy", {"table": TABLE}, TIER)


@pytest.mark.parametrize(
    "table", [[], 3, [1, 2], [[0.5]], [[0.5, 1], [0.4, 0]], [[0.5, 1], [0.6, 2]], [[0.5, float("nan")]], [["a", 1]]]
)
def test_a_broken_table_is_an_error(table: Any) -> None:
    with pytest.raises(PolicyError, match="table must"):
        build("target_accuracy", {"accuracy": 0.5, "table": table}, TIER)


# Baselines.


def test_max_success_and_min_cost() -> None:
    assert choose(build("max_success", {}, TIER), [[0.1, 0.9, 0.3]]) == [1]
    assert choose(build("min_cost", {}, TIER), [[0.1, 0.9, 0.3]], [2, 3, 1]) == [2]


def test_random_is_uniform_over_allowed_arms() -> None:
    allowed = np.tile([True, False, True, True], (9000, 1))
    arms = Random(seed=1).choose(np.zeros(allowed.shape), np.ones(allowed.shape), allowed)
    shares = np.bincount(arms, minlength=4) / len(arms)
    np.testing.assert_allclose(shares, [1 / 3, 0, 1 / 3, 1 / 3], atol=0.02)


def test_random_repeats_with_its_seed_and_varies_without() -> None:
    batch = np.zeros((64, 3))
    assert (Random(seed=1).choose(batch, batch) == Random(seed=1).choose(batch, batch)).all()
    assert (Random(seed=1).choose(batch, batch) != Random(seed=2).choose(batch, batch)).any()
    assert (Random().choose(batch, batch) != Random().choose(batch, batch)).any()


@pytest.mark.parametrize("seed", [True, -1, 0.5, "1"])
def test_a_bad_seed_is_an_error(seed: Any) -> None:
    with pytest.raises(PolicyError, match="seed must be"):
        build("random", {"seed": seed}, TIER)


def test_oracle_takes_the_cheapest_right_arm_else_the_cheapest() -> None:
    correct = [[0, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 1]]
    assert choose(build("oracle", {}, TIER), correct) == [1, 2, 0, 0]
