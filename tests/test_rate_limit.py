"""Token buckets: exact whoever takes, kept in seconds that no clock change moves."""

import subprocess
import sys
from pathlib import Path

import pytest

from server.keys.rate_limit import MINUTE_S, SLOTS, Buckets, Meter, duration, owner_of

OWNER = owner_of("team-a")


class Clock:
    def __init__(self) -> None:
        self.now = 1e6

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 977, 10_000])
def test_a_bucket_holds_a_minutes_worth_and_no_more(limit: int) -> None:
    meter = Meter(Buckets(clock=Clock()), OWNER, limit, None)
    granted = [meter.take("requests", 1) == 0 for _ in range(limit + 5)]
    assert granted == [True] * limit + [False] * 5


def test_a_bucket_fills_at_its_rate() -> None:
    clock = Clock()
    meter = Meter(Buckets(clock=clock), OWNER, 6, None)
    for _ in range(6):
        assert meter.take("requests", 1) == 0
    assert meter.take("requests", 1) == pytest.approx(10)
    clock.now += 9.9
    assert meter.take("requests", 1) == pytest.approx(0.1)
    clock.now += 0.1
    assert meter.take("requests", 1) == 0
    clock.now += 3600
    assert [meter.take("requests", 1) == 0 for _ in range(8)] == [True] * 6 + [False] * 2


def test_tokens_are_settled_by_what_was_used() -> None:
    clock = Clock()
    buckets = Buckets(clock=clock)
    meter = Meter(buckets, OWNER, None, 600)
    assert meter.take("tokens", 500) == 0
    meter.settle(100)
    meter.settle(100)  # once is enough
    following = Meter(buckets, OWNER, None, 600)
    assert following.take("tokens", 500) == 0
    following.settle(1100)  # more than was thought: paid off before anything else is granted
    third = Meter(buckets, OWNER, None, 600)
    assert third.take("tokens", 1) == pytest.approx(60.1)
    assert headers(third)[b"x-ratelimit-remaining-tokens"] == b"0"


def test_what_no_full_bucket_holds_waits_for_a_full_one() -> None:
    meter = Meter(Buckets(clock=Clock()), OWNER, None, 100)
    assert meter.take("tokens", 10_000) == 0
    assert meter.take("tokens", 10_000) == pytest.approx(60)


def test_whatever_an_upstream_claims_a_key_is_free_again_after_a_day() -> None:
    clock = Clock()
    meter = Meter(Buckets(clock=clock), OWNER, None, 100)
    meter.take("tokens", 1)
    meter.settle(2**60)
    clock.now += 24 * 3600
    assert meter.take("tokens", 100) == 0


def headers(meter: Meter) -> dict[bytes, bytes]:
    lines = meter.lines().split(b"\r\n")
    assert lines.pop() == b""
    return {name: value for name, _, value in (line.partition(b": ") for line in lines)}


def test_headers_are_openais() -> None:
    meter = Meter(Buckets(clock=Clock()), OWNER, 60, 600)
    meter.take("requests", 1)
    meter.take("tokens", 300)
    assert headers(meter) == {
        b"x-ratelimit-limit-requests": b"60",
        b"x-ratelimit-remaining-requests": b"59",
        b"x-ratelimit-reset-requests": b"1s",
        b"x-ratelimit-limit-tokens": b"600",
        b"x-ratelimit-remaining-tokens": b"300",
        b"x-ratelimit-reset-tokens": b"30s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, b"0ms"), (0.0121, b"13ms"), (1, b"1s"), (8.64, b"8.64s"), (60, b"1m0s"), (90.5, b"1m30.5s")],
)
def test_durations_are_openais(seconds: float, text: bytes) -> None:
    assert duration(seconds) == text


def test_more_keys_than_ever_share_the_slots() -> None:
    """Years of keys that come and go: a full bucket's slot is another key's, a used one's is kept."""
    clock = Clock()
    buckets = Buckets(clock=clock)
    busy = Meter(buckets, OWNER, 1, None)
    for i in range(SLOTS + 1000):
        if i % 1000 == 0:
            clock.now += 2 * MINUTE_S
            busy.take("requests", 1)
        assert Meter(buckets, owner_of(f"key-{i}"), 1, None).take("requests", 1) == 0
        if i % 97 == 0:
            assert busy.take("requests", 1) > 0, i


TAKER = """
import sys
from pathlib import Path
from server.keys.rate_limit import Buckets, Meter, owner_of

buckets = Buckets(Path(sys.argv[1]))
sys.stdin.readline()
print(sum(not Meter(buckets, owner_of("team-a"), 5000, None).take("requests", 1) for _ in range(4000)))
"""


def test_processes_share_the_buckets_exactly(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path / "buckets")
    ahead = Meter(buckets, OWNER, 5000, None)
    command = [sys.executable, "-c", TAKER, str(tmp_path / "buckets")]
    root = Path(__file__).parents[1]
    takers = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    began = buckets.clock()
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    granted = sum(int(taker.communicate(timeout=60)[0]) for taker in takers)
    refilled = (buckets.clock() - began) * 5000 / MINUTE_S
    assert 5000 <= granted <= 5000 + refilled + 1
    assert ahead.take("requests", 5000) > 0
    buckets.close()


def test_who_is_killed_in_the_middle_blocks_nobody(tmp_path: Path) -> None:
    script = TAKER.replace(
        "sys.stdin.readline()", 'buckets._lock(owner_of("x"), 0.0); print(flush=True); sys.stdin.readline()'
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "buckets")],
        cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    buckets = Buckets(tmp_path / "buckets")
    assert Meter(buckets, OWNER, 1, None).take("requests", 1) == 0
    buckets.close()
