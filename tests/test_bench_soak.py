"""A short `pika bench soak`: the real gateway, upstreams that fail, and every request accounted for."""

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from offline.bench import cli, soak
from offline.bench.gateway_client import Reply
from offline.bench.soak import Left, Sample, Soaked
from offline.bench.soak_clients import CHUNKS, Found, Verdict, judge
from tests.support.processes import descendants, running, until

ROOT = Path(__file__).parents[1]
PROCESSES = 4
"""Upstreams, gateway, clients, and Python's own beside the clients."""

MARK = "mark-000000001"
EVENTS = b"".join(
    b'data: {"choices":[{"index":0,"delta":{"content":"%b/%d "}}]}\n\n' % (MARK.encode(), index)
    for index in range(CHUNKS)
)
FIRST = EVENTS[: EVENTS.index(b"\n\n") + 2]
DONE = b"data: [DONE]\n\n"
FAILED = b'data: {"error":{"message":"broke off"}}\n\n'


def test_nothing_is_lost_mixed_up_or_left_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["soak", "--clients", "100", "--seconds", "8"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["answered"] > 0.8 * last["requests"] > 100
    assert (last["lost"], last["wrong"], last["hung"], last["in_flight_left"]) == (0, 0, 0, 0)
    assert last["fd_left"] <= 4  # health checks come and go
    # A file or 64 kB that each of some 300 requests leaves would be more; floors of a busy machine differ by a little.
    assert last["fd_growth"] < 0.5
    assert last["rss_growth"] < 0.1


@pytest.mark.parametrize(("bad", "in_flight", "code"), [(None, 0, 0), (None, 1, 1), ("lost", 0, 1), ("wrong", 0, 1)])
def test_what_is_lost_or_left_over_ends_with_an_error(
    bad: Verdict | None, in_flight: float, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Found(Counter({"answered": 9}) + Counter([bad] if bad else []))
    soaked = Soaked(found, [Sample(0, 100, 10)], Left(in_flight, 0))
    monkeypatch.setattr(soak, "soak", lambda *_: soaked)
    assert cli.main(["soak"]) == code


def test_growth_is_told_from_a_quarter_of_the_run_on_and_bursts_are_not() -> None:
    resident = [10, 50, 80, 100, 100, 100, 190, 110, 110, 150, 120, 120]
    soaked = Soaked(Found(), [Sample(at, mb, 7) for at, mb in enumerate(resident)], Left(0, 0))
    assert soaked.summary()["rss_growth"] == pytest.approx(0.2)
    assert soaked.summary()["fd_growth"] == 0


@pytest.mark.parametrize("ended_by", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_however_it_is_ended_nothing_goes_on(ended_by: signal.Signals) -> None:
    command = [sys.executable, "-m", "server", "bench", "soak", "--clients", "2", "--seconds", "60"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as soak:
        try:
            until(lambda: len(descendants(soak.pid)) >= PROCESSES, 60, "all of its processes run")
            started = descendants(soak.pid)
            (os.killpg if ended_by == signal.SIGINT else os.kill)(soak.pid, ended_by)  # a terminal's goes to all
            said = soak.communicate(timeout=30)[1]
            until(lambda: not started & running(), 20, "they have ended")
        finally:
            soak.kill()
    assert "Traceback" not in said


def test_a_gateway_that_does_not_start_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert cli.main(["soak", "--clients", "2", "--seconds", "1"]) == 1
    assert "upstreams did not start (exit code 1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "whole", "verdict"),
    [
        (EVENTS + DONE, True, "answered"),
        (EVENTS + DONE, False, "lost"),
        (EVENTS, True, "lost"),
        (EVENTS[:-40], False, "lost"),
        (EVENTS.replace(b"/3 ", b"/4 "), True, "lost"),
        (FIRST + FAILED, False, "refused"),
        (FAILED, False, "refused"),
        (FIRST * 2 + FAILED, False, "lost"),
        (FIRST.replace(b"/0 ", b"/0 and more ") + FAILED, False, "lost"),
        (EVENTS[len(FIRST) :] + FAILED, False, "lost"),
        (FIRST + FAILED + FIRST, False, "lost"),
        (EVENTS + DONE[:4] + FAILED, True, "lost"),
        (EVENTS.replace(b"1/3 ", b"2/3 ") + DONE, True, "wrong"),
        (b"", True, "lost"),
    ],
)
def test_streams_are_judged(body: bytes, whole: bool, verdict: str) -> None:
    assert judge(Reply(200, body, whole), MARK, streamed=True) == verdict


@pytest.mark.parametrize(
    ("status", "body", "whole", "verdict"),
    [
        (200, b'{"choices":[{"message":{"content":"mark-000000001"}}]}', True, "answered"),
        (200, b'{"choices":[{"message":{"content":"mark-000000002"}}]}', True, "wrong"),
        (200, b'{"choices":[{"message":{"content":"mark-000000001"}', True, "lost"),
        (200, b'{"choices":[]}', True, "lost"),
        (502, b'{"error":{"message":"no"}}', True, "refused"),
        (502, b"Bad Gateway", True, "lost"),
        (502, b'{"error":{"message":"no"}}', False, "lost"),
        (0, b"", False, "lost"),
    ],
)
def test_whole_answers_are_judged(status: int, body: bytes, whole: bool, verdict: str) -> None:
    assert judge(Reply(status, body, whole), MARK, streamed=False) == verdict
