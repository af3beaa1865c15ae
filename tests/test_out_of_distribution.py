"""Prompts unlike those that the probes were trained on: seen, flagged, counted, and sent where the operator says."""

from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from offline.benchmarks.running_total import RunningTotal
from server.app import create_app
from server.metrics import MIN_PROMPTS, drift_of
from server.sections.base import Section
from server.sections.outcomes import Audit
from server.sections.policy import OutOfDistribution
from server.sections.routing import Canary, Session
from tests.support import foreign
from tests.support import upstream as faults
from tests.support.gateway import nano_pool, serving
from tests.support.probes import NANO_POOL

N = 200
FOREIGN = {
    "German prose": foreign.german(N),
    "Python functions": foreign.python(N),
    "random tokens": foreign.random_tokens(N, NANO_POOL / "nano-medium"),
}


def known(n: int, seed: int) -> list[str]:
    """Problems like the training ones, none of which was one."""
    return [problem.problem for problem in RunningTotal().problems("test", n, seed)]


@contextmanager
def gateway(more: dict[str, Section] | None = None, **section: object) -> Iterator[httpx.Client]:
    with faults.running(faults.answers) as upstream:
        nano, odd = nano_pool(upstream.url), OutOfDistribution.model_validate(section)
        engine = nano.engine.model_copy(update={"deadline_ms": 60_000.0})  # 200 prompts at once, on busy cores
        settings = nano.model_copy(update={"out_of_distribution": odd, "engine": engine, **(more or {})})
        with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=120) as client:
            yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with gateway() as client:
        yield client


def flagged(client: httpx.Client, texts: list[str]) -> float:
    data = client.post("/score", json={"input": texts}).raise_for_status().json()["data"]
    for entry in data:
        percentiles = [arm["activation_percentile"] for arm in entry["arms"].values()]
        assert all(0 <= percentile <= 100 for percentile in percentiles)
        assert ("out-of-distribution" in entry["flags"]) == (max(percentiles) > 99)
    return float(np.mean(["out-of-distribution" in entry["flags"] for entry in data]))


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_prompts_are_flagged(kind: str, client: httpx.Client) -> None:
    assert flagged(client, FOREIGN[kind]) >= 0.9


def test_hardly_any_known_prompt_is_flagged(client: httpx.Client) -> None:
    shares = [flagged(client, known(N, seed)) for seed in (11, 12, 13, 14, 15)]
    assert np.mean(shares) <= 0.02


def chat(client: httpx.Client, text: str, model: str = "auto") -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return client.post("/v1/chat/completions", json=body).raise_for_status()


def test_headers_and_metrics_say_so(client: httpx.Client) -> None:
    assert "out-of-distribution" in chat(client, FOREIGN["German prose"][0]).headers["x-pika-flags"]
    assert chat(client, known(1, 21)[0]).headers["x-pika-flags"] == ""
    lines = client.get("/metrics").text.splitlines()
    assert next(line for line in lines if line.startswith("pika_activation_percentile_count")).endswith(".0")
    assert 'pika_flags_total{flag="out-of-distribution"} 1.0' in lines


def test_the_safe_arm_takes_them() -> None:
    with gateway(action={"arm": "nano-medium"}) as client:
        for model in ("auto", "auto-max_success", "auto-min_cost"):
            answer = chat(client, FOREIGN["Python functions"][0], model)
            assert (answer.headers["x-pika-arm"], answer.headers["x-pika-path"]) == ("nano-medium", "safe-arm")
        assert chat(client, known(1, 22)[0]).headers["x-pika-path"] == "routed"
        assert chat(client, FOREIGN["German prose"][0], "nano-small").headers["x-pika-path"] == "pinned"
        only = {
            "model": "auto",
            "messages": [{"role": "user", "content": "Guten Tag"}],
            "routing": {"arms": ["nano-small"]},
        }
        route = client.post("/route", json=only).json()
        assert (route["arm"], route["path"]) == ("nano-small", "routed")


def test_an_audit_goes_before_the_safe_arm() -> None:
    """Else outcomes would never tell whether that arm is the right one for such prompts."""
    with gateway(action={"arm": "nano-medium"}, more={"audit": Audit(share=1)}) as client:
        answers = [chat(client, FOREIGN["Python functions"][0]).headers for _ in range(30)]
    assert {answer["x-pika-path"] for answer in answers} == {"audit"}
    assert {answer["x-pika-arm"] for answer in answers} == {"nano-small", "nano-medium", "nano-large"}


def test_the_safe_arm_goes_before_a_conversations_own_and_after_a_candidate_and_the_arm_that_called_a_tool() -> None:
    trial = Canary.model_validate({"share": 0.5, "policy": {"name": "max_success"}})
    seen = set()
    with gateway(more={"session": Session(margin=1), "canary": trial}, action={"arm": "nano-medium"}) as client:
        for i in range(20):
            name, odd = {"x-session-id": f"{i}"}, FOREIGN["German prose"][i]

            def ask(name: dict[str, str] = name, **fields: object) -> tuple[str, str]:
                answer = client.post("/v1/chat/completions", json={"model": "auto", **fields}, headers=name)
                return answer.headers["x-pika-arm"], answer.headers["x-pika-path"]

            begun = ask(messages=[{"role": "user", "content": known(1, 23)[0]}], routing={"policy": "min_cost"})
            assert begun == ("nano-small", "routed")
            assert ask(messages=[{"role": "tool", "content": odd}]) == ("nano-small", "sticky")
            seen.add(ask(messages=[{"role": "user", "content": odd}]))
    assert seen == {("nano-medium", "safe-arm"), ("nano-small", "canary")}


def test_nothing_is_done_where_so_configured() -> None:
    with gateway(action="none") as client:
        assert chat(client, FOREIGN["German prose"][0]).headers["x-pika-flags"] == ""
        assert flagged_percentile(client, FOREIGN["German prose"][0]) > 99.9


def flagged_percentile(client: httpx.Client, text: str) -> float:
    [entry] = client.post("/score", json={"input": text}).json()["data"]
    return max(arm["activation_percentile"] for arm in entry["arms"].values())


def test_drift_is_the_distance_from_even_percentiles() -> None:
    even = list(np.linspace(0, 100, 2000))
    assert drift_of(even) < 0.01
    assert drift_of([99.9] * 500) == pytest.approx(0.999)
    assert drift_of([*even[:1000], *[100.0] * 1000]) == pytest.approx(0.5, abs=0.01)
    assert drift_of([100.0] * (MIN_PROMPTS - 1)) == 0
