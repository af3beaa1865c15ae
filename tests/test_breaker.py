"""What fails is left alone, tried again with care, and welcomed back."""

from server.upstream.breaker import (
    FIRST_OPEN_S,
    IN_A_ROW,
    MAX_OPEN_S,
    MIN_EXCHANGES,
    PROBE_INTERVAL_S,
    SETTLED_S,
    Breaker,
)
from server.upstream.retry_budget import FLOOR, WINDOW_S, RetryBudget


def fail(breaker: Breaker, times: int, now: float) -> None:
    for _ in range(times):
        breaker.failed(breaker.enter(now), now)


def test_it_opens_after_failures_in_a_row() -> None:
    breaker = Breaker()
    fail(breaker, IN_A_ROW - 1, 100)
    breaker.succeeded(breaker.enter(100), 100)
    fail(breaker, IN_A_ROW - 1, 100)
    assert not breaker.open
    fail(breaker, 1, 100)
    assert breaker.open
    assert breaker.wait_s(100) == FIRST_OPEN_S
    assert breaker.wait_s(100 + FIRST_OPEN_S) == 0


def test_it_opens_at_a_share_of_failures() -> None:
    breaker = Breaker()
    for i in range(MIN_EXCHANGES):
        assert not breaker.open
        era = breaker.enter(i)
        _ = breaker.succeeded(era, i) if i % 2 else breaker.failed(era, i)
    fail(breaker, 1, MIN_EXCHANGES)
    assert breaker.open


def test_old_failures_are_forgotten() -> None:
    breaker = Breaker()
    for i in range(MIN_EXCHANGES - 2):
        era = breaker.enter(0)
        _ = breaker.succeeded(era, 0) if i % 2 else breaker.failed(era, 0)
    for _ in range(4):
        fail(breaker, 1, 1000)
        breaker.succeeded(breaker.enter(1000), 1000)
    assert not breaker.open


def test_streams_that_break_off_open_it_though_they_were_successes_first() -> None:
    breaker = Breaker()
    for i in range(MIN_EXCHANGES):
        assert not breaker.open
        era = breaker.succeeded(breaker.enter(i), i)
        breaker.failed(era, i, after_all=True)
    assert breaker.open


def test_few_streams_that_break_off_do_not_open_it_however_late_the_others_end() -> None:
    breaker = Breaker()
    eras = [breaker.succeeded(breaker.enter(0), 0) for _ in range(3 * IN_A_ROW)]
    for era in eras[:IN_A_ROW]:
        breaker.failed(era, 1, after_all=True)
    assert not breaker.open


def test_the_stream_that_closed_it_and_breaks_off_is_one_failure() -> None:
    breaker = Breaker()
    fail(breaker, IN_A_ROW, 0)
    era = breaker.succeeded(breaker.enter(FIRST_OPEN_S), FIRST_OPEN_S)
    for _ in range(MIN_EXCHANGES // 2 - 1):
        fail(breaker, 1, FIRST_OPEN_S)
        breaker.succeeded(breaker.enter(FIRST_OPEN_S), FIRST_OPEN_S)
    breaker.succeeded(breaker.enter(FIRST_OPEN_S), FIRST_OPEN_S)
    assert not breaker.open
    assert breaker.failed(era, FIRST_OPEN_S, after_all=True)


def test_half_open_lets_one_request_a_second_through_and_a_success_closes() -> None:
    breaker = Breaker()
    fail(breaker, IN_A_ROW, 0)
    now = FIRST_OPEN_S
    era = breaker.enter(now)
    assert breaker.wait_s(now) == PROBE_INTERVAL_S
    assert breaker.succeeded(era, now) != era
    assert not breaker.open
    assert breaker.wait_s(now) == 0


def test_each_failed_try_doubles_the_wait() -> None:
    breaker = Breaker()
    fail(breaker, IN_A_ROW, 0)
    now, waits = 0.0, []
    for _ in range(8):
        waits.append(breaker.wait_s(now))
        now += breaker.wait_s(now)
        fail(breaker, 1, now)
    assert waits == [1, 2, 4, 8, 16, 32, MAX_OPEN_S, MAX_OPEN_S]
    now += MAX_OPEN_S
    breaker.succeeded(breaker.enter(now), now)
    fail(breaker, IN_A_ROW, now + SETTLED_S + 1)
    assert breaker.wait_s(now + SETTLED_S + 1) == FIRST_OPEN_S


def test_what_began_before_it_opened_says_nothing_of_afterwards() -> None:
    breaker = Breaker()
    early = [breaker.enter(0) for _ in range(IN_A_ROW + 2)]
    for era in early[:IN_A_ROW]:
        breaker.failed(era, 1)
    assert breaker.open
    assert not breaker.failed(early[-1], 1)
    assert breaker.succeeded(early[-2], 1) == early[-2]
    assert breaker.open
    assert breaker.wait_s(1) == FIRST_OPEN_S


def test_a_sign_of_recovery_ends_the_wait() -> None:
    breaker = Breaker()
    fail(breaker, IN_A_ROW, 0)
    breaker.try_now(0.5)
    assert breaker.wait_s(0.5) == 0
    assert breaker.open


def test_retries_are_a_tenth_of_the_requests_and_a_few() -> None:
    budget = RetryBudget()
    assert sum(budget.take(1000) for _ in range(100)) == FLOOR
    for _ in range(1000):
        budget.request(1001)
    assert sum(budget.take(1001) for _ in range(1000)) == 100
    assert sum(budget.take(1001 + WINDOW_S) for _ in range(100)) == FLOOR
    assert sum(budget.take(50_000) for _ in range(100)) == FLOOR
