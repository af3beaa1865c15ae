"""A short `pika bench replay`: the real command and a real gateway's dashboard on a ledger that was made for them."""

import json

import pytest

from offline.bench import cli
from offline.bench.replay import QUERIES


def test_a_ledger_is_filled_replayed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["replay", "--decisions", "2000"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["decisions"] == 2000
    assert tuple(last["dashboard_ms"]) == QUERIES
    assert last["dashboard_slowest_ms"] == max(last["dashboard_ms"].values())
    assert last["seconds"] > last["seconds_replay"] >= 0


def test_a_gateway_that_does_not_start_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert cli.main(["replay", "--decisions", "100"]) == 1
    assert "pika replay failed" in capsys.readouterr().err


def test_more_than_is_bounded_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["replay", "--decisions", "100000000"])
    assert "from 100 to 5,000,000" in capsys.readouterr().err
