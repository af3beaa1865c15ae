"""`pika bench gateway` measures the real gateway under a little load; how fast is not a test's business."""

import json

import pytest

from offline.bench import cli


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
