"""The exposition is clean by Prometheus' own linter, and every series is there from the start."""

import shutil
import subprocess

import httpx
import pytest

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import nano_pool, serving
from tests.support.processes import until

SERIES = (
    "pika_requests_total", "pika_flags_total", "pika_tokens_total", "pika_cost_usd_total", "pika_probe_cost_usd_total",
    "pika_cost_always_usd_total", "pika_expected_correct_total", "pika_success_probability_bucket",
    "pika_routing_seconds_bucket", "pika_probe_queue_seconds_bucket", "pika_probe_batch_prompts_bucket",
    "pika_probe_batch_tokens_bucket", "pika_probe_padding_tokens_total", "pika_time_to_first_token_seconds_bucket",
    "pika_request_seconds_bucket", "pika_replica_up", "pika_upstream_attempts_total", "pika_in_flight",
    "pika_probe_info", "pika_probe_cache_total", "pika_refused_total", "pika_log_dropped_total", "pika_reloads_total",
    "pika_ledger_dropped_total", "pika_outcomes_total", "pika_probe_reused_tokens_total",
)  # fmt: skip


@pytest.fixture(scope="module")
def expositions() -> tuple[str, str]:
    """Before the first request, and after some: routed, streamed, pinned, refused."""
    with faults.running(faults.answers) as upstream, serving(create_app(nano_pool(upstream.url))) as base:
        before = httpx.get(f"{base}/metrics", timeout=10).text
        messages = [{"role": "user", "content": "Begin with 2. Add 1."}]
        for model, stream in (("auto", False), ("auto", True), ("nano-small", False), ("none", False)):
            body = {"model": model, "stream": stream, "messages": messages}
            httpx.post(f"{base}/v1/chat/completions", json=body, timeout=30)
        return before, httpx.get(f"{base}/metrics", timeout=10).text


@pytest.mark.parametrize("series", SERIES)
def test_every_series_exists_before_the_first_request(expositions: tuple[str, str], series: str) -> None:
    assert any(line.startswith((series + "{", series + " ")) for line in expositions[0].splitlines())


def test_what_need_not_be_computed_again_is_counted() -> None:
    """A system prompt that requests share, and a whole prompt that has been scored before."""
    system = {"role": "system", "content": "Find the final number. " * 20}
    with faults.running(faults.answers) as upstream, serving(create_app(nano_pool(upstream.url))) as base:

        def counted(series: str) -> float:
            lines = httpx.get(f"{base}/metrics", timeout=10).text.splitlines()
            return next(float(line.split()[1]) for line in lines if line.startswith(f"{series} "))

        def lookups() -> list[float]:
            return [counted(f'pika_probe_cache_total{{result="{result}"}}') for result in ("hit", "shared", "miss")]

        for n in (0, 1, 2, 3, 3):
            conversation = [system, {"role": "user", "content": f"Begin with {n}. Add 1."}]
            assert httpx.post(f"{base}/score", json={"input": [conversation]}, timeout=30).status_code == 200
        until(lambda: sum(lookups()) == 5, 10, "the engine's reports arrive")
        assert lookups() == [1, 0, 4]
        until(lambda: counted("pika_probe_reused_tokens_total") > 200, 10, "those of micro-batches too")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)")
def test_promtool_finds_nothing(expositions: tuple[str, str]) -> None:
    for exposition in expositions:
        command = ["promtool", "check", "metrics"]
        done = subprocess.run(command, input=exposition, capture_output=True, text=True, timeout=30)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")
