"""`pika bench gateway` measures the real gateway under a little load; how fast is not a test's business."""

import json

import pytest

from offline.bench import cli
from offline.bench.gateway_load import Held, Outcome
from offline.bench.gateway_report import KINDS, Measured, Point, summary
from offline.bench.gateway_rivals import BUDGETED, DIRECT, KEYED, LITELLM, NGINX, OURS, PROBED, RECORDED


def test_all_answers_are_right_and_the_last_line_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gateway", "--quick", "--litellm", "/bin/false"]) == 0
    out, err = capsys.readouterr()
    assert "left out: litellm did not start (exit code 1)" in err
    last = json.loads(out.splitlines()[-1])
    assert last["errors"] == 0
    assert last["streams_open"] == 40
    for key in ("cpu_us_per_request", "cpu_us_per_stream", "requests_per_s", "streams_per_s"):
        assert last[key] > 0


def test_a_program_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["gateway", "--litellm", "/nowhere/litellm"]) == 2
    assert "/nowhere/litellm" in capsys.readouterr().err


def test_a_gateway_that_does_not_start_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert cli.main(["gateway", "--quick"]) == 1
    assert "upstream did not start (exit code 1)" in capsys.readouterr().err


def invented(name: str, cpu_us: tuple[float, float, float], p99_ms: float, errors: int = 0) -> Measured:
    """A system that takes so much CPU for a request, a stream, and a stream whose chunks come one by one."""
    points = {
        kind: Point(Outcome(1000, errors, 2, 1, p99_ms), cpu_s=us / 1000)
        for kind, us in zip(KINDS, cpu_us, strict=True)
    }
    at = {(kind, 500): point for kind, point in points.items() if kind != "one-by-one"}
    return Measured(name, points, at, Held(40, errors, 12.34) if name == OURS else None)


OWN = [
    invented(DIRECT, (0, 0, 0), 2),
    invented(OURS, (150, 400, 900), 5),
    *(invented(name, (200, 500, 1000), 9) for name in (RECORDED, KEYED, BUDGETED, PROBED)),
]


def test_a_ratio_is_the_others_cost_divided_by_ours() -> None:
    last = summary([*OWN, invented(NGINX, (30, 100, 300), 3), invented(LITELLM, (12_000, 80_000, 90_000), 52)])
    assert (last["cpu_us_per_request"], last["cpu_us_per_stream"]) == (150, 400)
    assert (last["ratio_vs_nginx"], last["ratio_vs_nginx_stream"]) == (0.2, 0.25)
    assert (last["ratio_vs_litellm"], last["ratio_vs_litellm_stream"]) == (80, 200)
    assert (last["ratio_vs_nginx_stream_one_by_one"], last["ratio_vs_litellm_stream_one_by_one"]) == (0.333, 100)
    assert (last["p99_ms_at_500"], last["p99_added_ms_at_500"]) == (5, 3)
    assert (last["p99_added_ms_at_500_nginx"], last["p99_added_ms_at_500_litellm"]) == (1, 50)
    assert (last["requests_per_s"], last["streams_open"], last["streams_open_memory_mb"]) == (500, 40, 12.3)


def test_who_was_not_there_has_no_ratio_and_a_rivals_errors_are_not_ours() -> None:
    last = summary([*OWN, invented(LITELLM, (1, 1, 1), 1, errors=7)])
    assert last["errors"] == 0
    assert not [name for name in last if "nginx" in name]
    assert summary([*OWN[:1], invented(OURS, (1, 1, 1), 1, errors=1), *OWN[2:]])["errors"] == 6
