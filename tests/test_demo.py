"""The demo for real, and its arithmetic by hand."""

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile

import httpx
import pytest

from offline.demo import main
from offline.demo_pool import with_ledger
from offline.demo_summary import Answer, Summary, in_words, summarise
from server.config import load as load_settings
from server.launch.vllm_server import free_port
from tests.support.processes import no_process_left, until

POOL = Path(__file__).parents[1] / "offline/nano_pool"
SMALL, LARGE = 1e-6, 4e-6
"""Cost of one answer, USD."""


def answers(arms: Sequence[str], correct: str) -> list[Answer]:
    """`correct`: one letter per problem, y or n."""
    costs = {"small": SMALL, "large": LARGE}
    return [Answer(arm, is_correct == "y", costs[arm]) for arm, is_correct in zip(arms, correct, strict=True)]


@pytest.fixture
def summary() -> Summary:
    always = {"large": answers(["large"] * 4, "yyyn"), "small": answers(["small"] * 4, "ynnn")}
    return summarise(answers(["small", "large", "large", "small"], "yyyn"), always, probe_cost_usd=2e-6, seed=0)


def test_routed_costs_its_answers_and_its_probe(summary: Summary) -> None:
    assert summary.routed.cost_usd == pytest.approx(2 * SMALL + 2 * LARGE + 2e-6)
    assert summary.routed.share == {"large": 0.5, "small": 0.5}
    assert summary.best == "large"
    assert summary.saving_vs_best == pytest.approx(1 - 12 / 16)
    assert summary.accuracy_diff == 0
    assert summary.accuracy_diff_ci == (0, 0)


def test_oracle_takes_the_cheapest_right_arm_else_the_cheapest(summary: Summary) -> None:
    assert summary.oracle.accuracy == 0.75
    assert summary.oracle.cost_usd == pytest.approx(2 * SMALL + 2 * LARGE)
    assert summary.oracle.share == {"large": 0.5, "small": 0.5}


def test_of_equally_good_arms_the_cheaper_is_best() -> None:
    always = {"large": answers(["large"] * 2, "yn"), "small": answers(["small"] * 2, "ny")}
    assert summarise(answers(["small"] * 2, "ny"), always, 0, seed=0).best == "small"


def test_failed_requests_are_errors_and_not_right() -> None:
    routed = [Answer(None, correct=False, cost_usd=0), *answers(["small"], "y")]
    summary = summarise(routed, {"small": answers(["small"] * 2, "yy")}, 0, seed=0)
    assert summary.errors == 1
    assert summary.routed.accuracy == 0.5
    assert summary.routed.share == {"small": 1}


def test_words_say_when_routing_costs_more() -> None:
    always = {"large": answers(["large"] * 2, "nn"), "small": answers(["small"] * 2, "yy")}
    assert "cost 300% more" in in_words(summarise(answers(["large"] * 2, "nn"), always, 0, seed=0))


def test_kept_it_has_all_that_needs_no_secret() -> None:
    with with_ledger(POOL / "pool.yaml") as copy:
        kept = load_settings(copy)
    assert None not in (kept.ledger, kept.session, kept.audit)
    assert kept.keys is None


@pytest.mark.parametrize(
    "arguments",
    [
        ("--requests", "0"),
        ("--lambda", "-1"),
        ("--lambda", "0.4", "--policy", "cascade"),
        ("--policy", "no"),
        ("--port", "0"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with no_process_left(), pytest.raises(SystemExit) as refused:
        main(list(arguments))
    assert refused.value.code == 2
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install")
@pytest.mark.skipif(not (POOL / "policy.tuned.json").exists(), reason="the nano pool has no tuned policy yet")
def test_demo_adds_up_stays_up_and_leaves_nothing() -> None:
    port = free_port()
    command = [sys.executable, "-m", "server", "demo", "--requests", "24", "--policy", "target_accuracy", "--keep",
               "--port", str(port)]  # fmt: skip
    with (
        no_process_left(),
        TemporaryFile("w+") as stderr,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True) as demo,
    ):
        try:
            assert demo.stdout is not None
            lines = []
            for line in demo.stdout:
                lines.append(line.rstrip("\n"))
                if line.startswith("{"):
                    break
            stderr.seek(0)
            assert lines, stderr.read()
            (curl,) = [shlex.split(line.removeprefix("Try: ")) for line in lines if line.startswith("Try: curl ")]
            base_url = f"http://127.0.0.1:{port}"
            assert f"{base_url}/v1" in " ".join(lines).split()
            assert httpx.get(f"{base_url}/ready", trust_env=False).is_success
            assert f"{base_url}/dashboard" in " ".join(lines)
            assert "<title>" in httpx.get(f"{base_url}/dashboard", trust_env=False).raise_for_status().text

            def shown() -> tuple[int, int]:
                """Requests, and outcomes."""
                answer = httpx.get(f"{base_url}/dashboard/data/summary", trust_env=False).raise_for_status().json()
                return answer["requests"], answer["observed"]["n"]

            until(lambda: shown() == (24 * 4, 24), 10, "it shows those routed and those put to each arm alone")
            metrics = httpx.get(f"{base_url}/metrics", trust_env=False).text
            told = [float(line.split()[-1]) for line in metrics.splitlines() if line.startswith("pika_outcomes_total")]
            assert sum(told) == 24
            (replay,) = [line for line in lines if "pika replay" in line]
            pool = Path(shlex.split(replay)[-1])
            assert (pool.parent / "pika-ledger.sqlite").is_file()
            url, content_type, body = (curl[i] for i in (2, 4, 6))
            answer = httpx.post(url, headers=[tuple(content_type.split(": "))], content=body, trust_env=False)
            assert answer.json()["choices"][0]["message"]["content"]
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(20) == 0
            assert not pool.parent.exists()
        finally:
            demo.terminate()

    last = json.loads(lines[-1])
    routed, always, best = last["routed"], last["always"], last["best"]
    assert last["requests"] == 24
    assert last["errors"] == 0
    assert sum(routed["share"].values()) == pytest.approx(1)
    assert list(routed["share"]) == list(always) == ["nano-small", "nano-medium", "nano-large"]
    assert always[best]["accuracy"] == max(side["accuracy"] for side in always.values())
    assert last["saving_vs_best"] == pytest.approx(1 - routed["cost_usd"] / always[best]["cost_usd"])
    assert last["accuracy_diff"] == pytest.approx(routed["accuracy"] - always[best]["accuracy"])
    assert last["accuracy_diff_ci"][0] <= last["accuracy_diff"] <= last["accuracy_diff_ci"][1]
    assert last["oracle"]["accuracy"] >= max(side["accuracy"] for side in always.values())
    assert sum("P(correct): nano-small" in line for line in lines) == 3
