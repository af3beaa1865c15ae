"""Which prompts are computed next, and how fast: pure functions of what is told."""

from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from probes.engine.base import EngineUnavailableError, Prompt
from probes.engine.batch import MICRO_BATCH_TOKENS
from probes.engine.pace import BATCH_S, Pace, measure
from probes.engine.queue import PromptQueue, Queued

LARGE = Pace(fixed_s=0.005, token_s=0.001)
"""A large model on a CPU: no prompt is worth waiting for another."""
TINY = Pace(fixed_s=0.002, token_s=0.00001)
NANO = Pace(fixed_s=0.001, token_s=0.00002)
"""A small one on a CPU: five prompts are a micro-batch."""


def queued(tokens: int, due: float = 100.0, expires: float | None = None) -> Queued:
    return Queued(Prompt(((5,) * tokens,)), 0.0, due, due if expires is None else expires)


def queue(pace: Pace, *waiting: Queued, prompts: int = 512, tokens: int = 200_000) -> PromptQueue[Queued]:
    found: PromptQueue[Queued] = PromptQueue(prompts, tokens, pace)
    for one in waiting:
        found.push(one)
    return found


def taken(queue: PromptQueue[Queued], now: float = 0.0) -> list[Queued]:
    return queue.take(now)[0]


def test_the_earliest_deadline_is_first_and_equal_ones_go_by_arrival() -> None:
    late, early, also_late, never = queued(90, 9), queued(80, 3), queued(70, 9), queued(10, np.inf)
    found = queue(LARGE, never, late, early, also_late)
    assert [taken(found)[0] for _ in range(4)] == [early, late, also_late, never]
    assert found.take(0) == ([], [])


def test_a_micro_batch_holds_what_its_time_allows() -> None:
    assert LARGE.batch_tokens == 25
    assert TINY.batch_tokens == 2500
    assert len(taken(queue(LARGE, *(queued(90) for _ in range(3))))) == 1
    found = queue(TINY, *(queued(90) for _ in range(40)))
    assert [len(taken(found)) for _ in range(2)] == [27, 13]
    assert len(taken(queue(TINY, queued(5000), queued(1)))) == 1


def test_where_much_waits_half_of_it_is_computed_together() -> None:
    found = queue(LARGE, *(queued(90) for _ in range(16)))
    assert [len(taken(found)) for _ in range(5)] == [8, 4, 2, 1, 1]
    assert len(taken(queue(LARGE, *(queued(100) for _ in range(100))))) == 10, "more than 1,024 tokens are no cheaper"
    urgent = queued(90, due=0.15)
    assert taken(queue(LARGE, urgent, *(queued(90) for _ in range(16)))) == [urgent], "it would be late beside others"
    reused = replace(LARGE, computed=0.25)
    assert len(taken(queue(reused, *(queued(400) for _ in range(100))))) == 10, "of which 1,000 are computed"


def test_a_gpus_passes_are_filled_up_to_what_one_costs_anyway() -> None:
    assert Pace(fixed_s=0.08, token_s=0.00002).batch_tokens == 4000
    assert Pace(fixed_s=0.08, token_s=0.000002).batch_tokens == MICRO_BATCH_TOKENS


def test_what_has_expired_is_not_computed() -> None:
    first, second, third = queued(9, due=1), queued(9, due=2, expires=8), queued(9, due=3)
    assert queue(TINY, first, second, third).take(5.0) == ([second], [first, third])


def test_a_micro_batch_makes_none_of_its_prompts_late() -> None:
    """Ten milliseconds each."""
    waiting = [queued(450, due) for due in (0.034, 1.0, 1.0, 1.0)]
    found = queue(NANO, *waiting)
    assert taken(found) == waiting[:2]
    assert taken(found, 0.02) == waiting[2:]


def test_what_cannot_be_ready_in_time_is_given_up_unless_there_is_nothing_else_to_do() -> None:
    hopeless, also, possible = queued(450, 0.005), queued(450, 0.006), queued(450, 0.03)
    assert queue(NANO, hopeless, also, possible).take(0.0) == ([possible], [hopeless, also])
    assert queue(NANO, hopeless, also).take(0.0) == ([also], [hopeless])


def test_prompts_can_be_hastened_and_taken_out() -> None:
    one, other, third = queued(90, 5), queued(90, 7), queued(90, 6)
    found = queue(LARGE, one, other, third)
    found.hasten(other, 1)
    found.remove(one)
    assert [taken(found), taken(found), taken(found)] == [[other], [third], []]


def test_a_full_queue_refuses_whole_requests() -> None:
    found = queue(TINY, *(queued(10) for _ in range(3)), prompts=4, tokens=60)
    found.admit([Prompt(((5,) * 30,))], np.inf, 0.0)
    with pytest.raises(
        EngineUnavailableError, match=r"queue is full: 3 prompts with 30 tokens wait \(engine.queue: 4 "
    ):
        found.admit([Prompt(((5,) * 31,))], np.inf, 0.0)
    with pytest.raises(EngineUnavailableError, match="queue is full"):
        found.admit([Prompt(((5,),))] * 2, np.inf, 0.0)
    with pytest.raises(
        EngineUnavailableError, match="more than the engine's queue ever holds: 5 prompts with 5 tokens"
    ):
        found.admit([Prompt(((5,),))] * 5, np.inf, 0.0)


def test_what_would_be_late_is_refused_at_once_but_not_by_an_idle_engine() -> None:
    long = [Prompt(((5,) * 1000,))]  # one second
    found = queue(LARGE)
    found.admit(long, 0.1, 0.0)
    found.push(queued(1000))
    found.admit(long, 2.6, 0.0)
    with pytest.raises(EngineUnavailableError, match="would not be ready before the deadline"):
        found.admit(long, 2.4, 0.0)
    taken(found)
    with pytest.raises(EngineUnavailableError, match="would not be ready"):
        found.admit(long, 2.4, 0.0)
    found.admit(long, 2.4, 0.9)  # most of the first one's second is over
    found.pace.observe(1000, 3.0)
    with pytest.raises(EngineUnavailableError, match="would not be ready"):
        found.admit(long, 2.4, 0.9)


def test_reused_tokens_make_micro_batches_larger_and_deadlines_no_looser() -> None:
    """Four tokens in five are a system prompt that is computed no more."""
    pace = replace(NANO)
    alone_s = pace.slowdown * pace.batch_s(400)
    for _ in range(40):
        pace.observe(400, pace.batch_s(400), reused=1600)
    assert pace.batch_tokens == pytest.approx(5 * NANO.batch_tokens, rel=0.01)
    assert pace.slowdown * pace.batch_s(400) == pytest.approx(alone_s)
    for _ in range(40):
        pace.observe(400, pace.batch_s(400))
    assert pace.batch_tokens == pytest.approx(NANO.batch_tokens, rel=0.01)


def test_texts_too_short_to_count_are_observed() -> None:
    pace = Pace(fixed_s=0.0, token_s=1e-5)
    pace.observe(0, 1e-5)
    assert pace.slowdown == pytest.approx(1.0)


@pytest.mark.parametrize("load", [1.2, 3.0])
@pytest.mark.parametrize("measured", [LARGE, NANO], ids=["large", "nano"])
def test_overload_costs_no_goodput(measured: Pace, load: float) -> None:
    """Poisson arrivals; a deadline and a queue of ten mean services; service times err by a fifth."""
    rng = np.random.default_rng(0)
    pace = replace(measured)
    tokens = rng.integers(50, 400, size=3000)
    mean_s = pace.batch_s(int(tokens.mean()))
    arrivals = np.cumsum(rng.exponential(mean_s / load, size=len(tokens)))
    found = queue(pace, prompts=10)
    free, in_time, refused, wasted = 0.0, 0, 0, 0
    for now, size in zip(arrivals, tokens, strict=True):
        while free < now:
            batch = taken(found, free)
            if not batch:
                free = float(now)
                break
            size_of_all = sum(one.tokens for one in batch)
            took = pace.batch_s(size_of_all) * rng.uniform(0.8, 1.2)
            found.pace.observe(size_of_all, took)
            free += took
            good = sum(free <= one.expires for one in batch)
            in_time, wasted = in_time + good, wasted + len(batch) - good
        try:
            found.admit([Prompt(((5,) * int(size),))], now + 10 * mean_s, now)
        except EngineUnavailableError:
            refused += 1
        else:
            found.push(queued(int(size), now + 10 * mean_s))
    capacity = arrivals[-1] / mean_s
    assert in_time / capacity > 0.95
    assert wasted / capacity < 0.01
    assert refused > 0


@pytest.mark.parametrize(
    ("fixed_s", "token_s"), [(0.002, 1e-5), (0.02, 5e-6), (0.005, 0.001), (1.0, 0.1), (1e-5, 1e-7)]
)
def test_the_pace_is_measured_as_it_is(fixed_s: float, token_s: float) -> None:
    clock, computed = [0.0], []

    def compute(n: int, tokens: int) -> int:
        clock[0] += (5 if not computed else 1) * (fixed_s + n * tokens * token_s)  # the first pass is slow
        computed.append(n * tokens)
        return n * tokens

    found = measure(compute, lambda: clock[0])
    assert found.fixed_s == pytest.approx(fixed_s, rel=0.2)
    assert found.token_s == pytest.approx(token_s, rel=0.2)
    assert sum(computed) < 20_000


def test_a_measurement_that_jitters_gives_some_pace() -> None:
    ticks = count()
    found = measure(lambda n, tokens: n * tokens, lambda: next(ticks) % 3 * 0.1)
    assert found.token_s > 0
    assert 1 <= found.batch_tokens <= MICRO_BATCH_TOKENS


def test_the_pace_follows_the_machine() -> None:
    pace = Pace(0.002, 0.00001)
    for _ in range(50):
        pace.observe(100, 10 * 0.003)
    assert pace.slowdown == pytest.approx(10, rel=0.01)
    assert pace.batch_tokens == round(BATCH_S / 0.00001)
    for _ in range(50):
        pace.observe(100, 0.003 / 3)
    assert pace.batch_tokens == pytest.approx(3 * BATCH_S / 0.00001, rel=0.01)
    pace.observe(100, 1e9)  # asleep
    assert pace.slowdown < 25
