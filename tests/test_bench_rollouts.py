"""`pika bench rollouts` measures with real clients and a real server; how fast is not a test's business."""

import json
from importlib.util import find_spec

import pytest

from offline.bench import cli, rollouts


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")
@pytest.mark.timeout(400)
def test_the_last_line_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(rollouts, "QUICK_PROBLEMS", 40)
    assert cli.main(["rollouts", "--quick", "--concurrency", "8"]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["model"], last["concurrency"], last["problems"]) == ("nano-small", 8, 40)
    [ours], [theirs], [bare] = last["answers_per_s"].values()
    assert last["ratio"] == pytest.approx(ours / theirs, rel=0.02)
    assert last["ratio_bare"] == pytest.approx(ours / bare, rel=0.02)


def test_vllm_that_does_not_start_is_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert cli.main(["rollouts", "--quick"]) == 1
    assert "vLLM did not start (exit code 1)" in capsys.readouterr().err
