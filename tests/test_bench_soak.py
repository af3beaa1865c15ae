"""A short `pika bench soak`: the real gateway, upstreams that fail, and every request accounted for."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from offline.bench import cli
from offline.bench.gateway_client import Reply
from offline.bench.soak_clients import CHUNKS, judge
from tests.support.processes import descendants, running, until

ROOT = Path(__file__).parents[1]
PROCESSES = 4
"""Upstreams, gateway, clients, and Python's own beside the clients."""

MARK = "mark-000000001"
EVENTS = b"".join(
    b'data: {"choices":[{"index":0,"delta":{"content":"%b/%d "}}]}\n\n' % (MARK.encode(), index)
    for index in range(CHUNKS)
)
DONE = b"data: [DONE]\n\n"
FAILED = b'data: {"error":{"message":"broke off"}}\n\n'


def test_nothing_is_lost_mixed_up_or_left_over(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["soak", "--clients", "100", "--seconds", "8"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["answered"] > 100
    assert (last["lost"], last["wrong"], last["hung"], last["in_flight_left"]) == (0, 0, 0, 0)
    assert last["fd_left"] <= 4  # health checks come and go


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
        (EVENTS[: len(EVENTS) // CHUNKS] + FAILED, False, "refused"),
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
