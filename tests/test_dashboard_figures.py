"""The dashboard's figures, against arithmetic on the decisions that they are of."""

import time
from collections.abc import Iterator
from uuid import uuid4

import numpy as np
import pytest
from sqlalchemy import func, select

from probes.calibration import FloatArray
from routing_policies.costs import normalise
from server.dashboard.period import PERIODS, Period
from server.dashboard.reasons import why
from server.dashboard.recent import read_one, read_page
from server.dashboard.sample import read_sample
from server.dashboard.shares import share
from server.dashboard.totals import read_mix, read_totals
from server.dashboard.truth import drift, read_reliability
from server.dashboard.whatif import best_single, frontier, what_if
from server.ledger.database import Database, open_database
from server.ledger.row import DecisionRow
from server.ledger.tables import decisions, outcomes
from tests.support.filled_ledger import COST, POOL, decided, filled, write

N = 3000
NOW = float(int(time.time()) // 3600 * 3600 + 1800)
"""In the middle of an hour, so that no sum by hours ends with the test."""
NAMES = list(POOL.arms)


@pytest.fixture(scope="module")
def rows() -> list[DecisionRow]:
    return list(decided(N, NOW - 1500, NOW - 60))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.sqlite"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgresql").make(f"figures_{uuid4().hex}")
    database = filled(url, N, NOW - 1500, NOW - 60)
    yield database
    database.close()


@pytest.fixture
def empty(ledger_url: str) -> Iterator[Database]:
    database = open_database(ledger_url)
    yield database
    database.close()


def success_of(rows: list[DecisionRow]) -> FloatArray:
    return np.array([row.success[row.arm] for row in rows])


@pytest.mark.parametrize("period", PERIODS.values(), ids=PERIODS)
def test_totals_are_the_sums_over_decisions(database: Database, rows: list[DecisionRow], period: Period) -> None:
    with database.read() as connection:
        totals = read_totals(connection, period, NOW, NAMES)
    arms = np.array([row.arm for row in rows])
    own = np.array([(40 * i + o * n) / 1e6 for (i, o), n in zip(POOL.prices, (6, 6, 35), strict=True)])
    spent = own[arms].sum() + N * 4e-7
    assert totals.requests == N
    assert totals.errors == 0
    assert totals.probe_usd == pytest.approx(N * 4e-7)
    assert totals.spent_usd == pytest.approx(spent)
    assert totals.expected.accuracy == pytest.approx(success_of(rows).mean())
    for i, arm in enumerate(totals.arms):
        assert arm.name == POOL.arms[i]
        assert arm.requests == (arms == i).sum()
        assert arm.always_usd == pytest.approx(N * own[i])
        assert arm.saved_usd == pytest.approx(N * own[i] - spent)


def test_pinned_requests_are_no_part_of_what_routing_saves(empty: Database) -> None:
    write(empty, list(decided(200, NOW - 1000, NOW - 500)), answered=0.5)
    with empty.read() as connection:
        before = read_totals(connection, PERIODS["1h"], NOW, NAMES)
    pinned = list(decided(300, NOW - 900, NOW - 400, seed=5))
    for row in pinned:
        row.path, row.policy, row.arm, row.output_tokens = "pinned", "none", 2, 35
    write(empty, pinned, answered=1.0)
    with empty.read() as connection:
        after = read_totals(connection, PERIODS["1h"], NOW, NAMES)
        everything = frontier(read_sample(connection, NOW - 3600))
    assert (after.requests, after.pinned) == (500, 300)
    assert after.arms == before.arms
    assert after.observed == before.observed
    assert everything.n == 200
    ways = {(way.policy, way.path): way for way in after.ways}
    assert set(ways) == {("none", "pinned"), ("utility", "routed"), ("utility", "audit")}
    assert ways["none", "pinned"].requests == ways["none", "pinned"].observed.n == 300
    assert ways["none", "pinned"].cost_usd == pytest.approx(9e-5)
    assert sum(way.requests for way in after.ways) == 500


def test_observed_accuracy_is_that_of_the_outcomes(database: Database) -> None:
    with database.read() as connection:
        totals = read_totals(connection, PERIODS["1h"], NOW, NAMES)
        correct, count = connection.execute(
            select(func.avg(outcomes.c.correct), func.count()).select_from(outcomes)
        ).one()
    assert totals.observed.n == count
    assert totals.observed.accuracy == pytest.approx(correct)
    assert totals.observed.low is not None
    assert totals.observed.high is not None
    assert totals.observed.low < correct < totals.observed.high
    assert totals.expected.accuracy == pytest.approx(correct, abs=0.03)  # the probabilities are true


def test_what_lies_before_a_period_does_not_count(database: Database) -> None:
    with database.read() as connection:
        later = read_totals(connection, PERIODS["1h"], NOW + 7200, NAMES)
        sample = read_sample(connection, NOW)
    assert later.requests == 0
    assert later.expected == share(0, 0)
    assert [arm.always_usd for arm in later.arms] == [None, None, None]
    assert sample.decisions == 0
    assert frontier(sample).n == 0


def test_the_mix_counts_every_request_once(database: Database, rows: list[DecisionRow]) -> None:
    with database.read() as connection:
        mix = read_mix(connection, PERIODS["1h"], NOW, NAMES)
    assert mix.arms == NAMES
    counts = np.array(mix.requests)
    assert counts.sum(axis=1).tolist() == np.bincount([row.arm for row in rows], minlength=3).tolist()
    busiest = mix.times[int(counts.sum(axis=0).argmax())]
    inside = [row for row in rows if busiest <= row.at < busiest + 60]
    assert counts.sum(axis=0).max() == len(inside)


def test_prices_that_change_make_a_pool_of_their_own(empty: Database) -> None:
    """What an arm alone would have cost is added up by the prices of the time."""
    write(empty, list(decided(100, NOW - 1000, NOW - 500)))
    later = list(decided(50, NOW - 400, NOW - 100, seed=7))
    dearer = POOL.__class__(
        arms=[*POOL.arms[:2], "giant"], prices=[*POOL.prices[:2], (5.0, 20.0)], mean_tokens=POOL.mean_tokens,
        probes=POOL.probes, policy=POOL.policy,
    )  # fmt: skip
    write(empty, later, pool=dearer)
    with empty.read() as connection:
        totals = read_totals(connection, PERIODS["1h"], NOW, dearer.arms)
        sample = read_sample(connection, NOW - 3000)
    arms = {arm.name: arm for arm in totals.arms}
    assert list(arms) == ["nano-small", "nano-medium", "giant", "nano-large"]
    assert arms["nano-small"].always_usd == pytest.approx(150 * 1.6e-6)
    assert arms["nano-large"].always_usd == pytest.approx(100 * 9e-5)
    assert arms["giant"].always_usd == pytest.approx(50 * 9e-4)
    assert sample.pool is not None
    assert list(sample.pool.arms) == dearer.arms
    assert frontier(sample).n == 50  # of the newest pool alone


def test_a_sample_is_bounded_and_even(database: Database, rows: list[DecisionRow]) -> None:
    with database.read() as connection:
        sample = read_sample(connection, NOW - 3600, most=300)
        every = read_sample(connection, NOW - 3600)
    assert sample.decisions == every.decisions == N
    assert len(sample.at) == 300
    assert len(every.at) == N
    thirds = np.histogram(sample.at, bins=3, range=(rows[0].at, rows[-1].at))[0]
    assert thirds.tolist() == pytest.approx([100, 100, 100], abs=2)


def test_a_clock_that_goes_back_makes_an_empty_period_and_no_error(database: Database) -> None:
    with database.read() as connection:
        assert read_totals(connection, PERIODS["1h"], NOW - 10 * 24 * 3600, NAMES).requests == N
        assert sum(map(sum, read_mix(connection, PERIODS["1h"], NOW - 10 * 24 * 3600, NAMES).requests)) == 0
        sample = read_sample(connection, NOW - 10 * 24 * 3600)
        assert sum(drift(sample, PERIODS["1h"], NOW - 10 * 24 * 3600).n) <= N


def test_a_lambda_is_replayed_as_the_policy_would_decide(database: Database, rows: list[DecisionRow]) -> None:
    with database.read() as connection:
        sample = read_sample(connection, NOW - 3600)
    success = np.array([row.success for row in rows])
    tier = np.array(sample.tier_cost)
    for lam in (0.0, 0.3, 1e6):
        point = what_if(sample, lam)
        chosen = (success - lam * normalise(tier)).argmax(axis=1)
        assert point is not None
        assert point.accuracy == pytest.approx(success[np.arange(N), chosen].mean(), abs=1e-6)
        assert list(point.mix.values()) == pytest.approx(np.bincount(chosen, minlength=3) / N)
        assert point.n == N
    everything = frontier(sample)
    assert everything.today is not None
    assert everything.today.accuracy == pytest.approx(success_of(rows).mean(), abs=1e-6)
    assert [one.accuracy for one in everything.always] == pytest.approx(success.mean(axis=0).tolist(), abs=1e-6)
    best = best_single(sample)
    assert best is not None
    assert best.arm == "nano-large"
    costs = [point.cost_usd for point in everything.points]
    assert costs == sorted(costs, reverse=True)  # the more cost weighs, the less is paid


def test_accuracy_of_an_arm_alone_is_estimated_from_outcomes(database: Database, rows: list[DecisionRow]) -> None:
    with database.read() as connection:
        alone = frontier(read_sample(connection, NOW - 3600)).always
    truth = np.array([row.success for row in rows]).mean(axis=0)
    for one, true in zip(alone[1:], truth[1:], strict=True):
        assert one.outcomes is not None
        assert one.outcomes.low < true < one.outcomes.high


def test_decisions_without_probabilities_say_so(empty: Database) -> None:
    rows = list(decided(20, NOW - 100, NOW))
    for row in rows:
        row.success = np.full(3, np.nan)
    write(empty, rows)
    with empty.read() as connection:
        sample = read_sample(connection, NOW - 3600)
        [line, *_], _ = read_page(connection, 5, None)
        assert read_totals(connection, PERIODS["1h"], NOW, NAMES).expected.accuracy is None
    assert "probabilities" in str(frontier(sample).why)
    assert what_if(sample, 0.4) is None
    assert line.success_probability is None


def test_reliability_shows_what_is_wrong_with_probabilities(empty: Database) -> None:
    """True ones lie on the diagonal; those of an arm that is right half as often as said lie far below."""
    write(empty, list(decided(4000, NOW - 1000, NOW)), answered=1.0)
    with empty.write() as connection:
        halved = outcomes.update().where(outcomes.c.arm == "nano-large").values(correct=outcomes.c.correct / 2)
        connection.execute(halved)
    with empty.read() as connection:
        found = {one.arm: one for one in read_reliability(connection, NOW - 3600)}
        assert read_reliability(connection, NOW + 3600) == []
        assert sum(one.n for one in read_reliability(connection, NOW - 3600, most=100)) == 100
    medium, large = found["nano-medium"], found["nano-large"]
    assert medium.error < 0.03
    assert large.error > 0.3
    assert sum(one.observed.n for one in medium.bins) == pytest.approx(medium.n, abs=len(medium.bins))
    for one in large.bins:
        assert one.observed.high is not None
        assert one.observed.high < one.predicted


def test_drift_appears_with_prompts_of_another_kind(empty: Database) -> None:
    usual, odd = list(decided(1500, NOW - 3000, NOW - 1500)), list(decided(1500, NOW - 1500, NOW, seed=3))
    for row in odd:
        assert row.percentile is not None
        row.percentile = 90 + row.percentile / 10
    write(empty, [*usual, *odd], answered=0)
    with empty.read() as connection:
        shown = drift(read_sample(connection, NOW - 3600), PERIODS["1h"], NOW)
    known = [value for value in shown.drift if value is not None]
    assert known[0] < 0.1
    assert known[-1] > 0.8
    assert sum(shown.n) == 3000


def test_pages_hold_every_decision_once_newest_first(database: Database) -> None:
    seen: list[int] = []
    before = None
    with database.read() as connection:
        while True:
            lines, before = read_page(connection, 70, before)
            seen += [line.id for line in lines]
            if before is None:
                break
        assert len(seen) == N
        assert seen == sorted(seen, reverse=True)
        assert read_page(connection, 10, seen[-1]) == ([], None)


def test_a_decision_is_told_in_full(database: Database, rows: list[DecisionRow]) -> None:
    audited = next(row for row in rows if row.path == "audit" and row.arm != row.policy_arm)
    with database.read() as connection:
        id_ = connection.scalar(select(decisions.c.id).where(decisions.c.request_id == audited.request_id))
        assert id_ is not None
        one = read_one(connection, id_)
        assert read_one(connection, 10**12) is None
    assert one is not None
    assert one["request_id"] == audited.request_id
    assert [arm["success_probability"] for arm in one["arms"]] == pytest.approx(audited.success.tolist(), rel=1e-5)
    assert [arm["expected_cost_usd"] for arm in one["arms"]] == pytest.approx(COST.tolist(), rel=1e-5)
    assert [arm["chosen"] for arm in one["arms"]].index(True) == audited.arm
    assert [arm["by_policy"] for arm in one["arms"]].index(True) == audited.policy_arm
    assert POOL.arms[audited.policy_arm] in one["why"]
    assert "audit" in one["why"]


def test_every_path_has_a_reason_of_its_own() -> None:
    paths = ("routed", "pinned", "sticky", "safe-arm", "audit", "canary", "shadow", "fallback", "probe-unavailable")
    said = {why(path, "utility", "small", "large", 0.01, ["truncated"]) for path in paths}
    assert len(said) == len(paths)
    assert all("cut to the probe's length" in one for one in said)
    assert "by way of another" in why("another", "utility", "small", "small", 1.0, [])
