"""The probe engine hangs, dies or is full: requests go where the configuration says, and the gateway stays up."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from probes.engine.batching import BatchingEngine
from server.app import create_app
from server.config import Settings
from server.engine import options
from server.pool import build_pool
from server.sections.engine import Engine, Queue
from tests.support import upstream as faults
from tests.support.engines import Held, listening
from tests.support.gateway import nano_pool, serving
from tests.support.processes import descendants, until

BODY = {
    "model": "auto",
    "messages": [{"role": "user", "content": "Find the final number. Begin with 2. Add 1. Take 9. Add 3. Subtract 4."}],
}


@contextmanager
def hung_engine(settings: Settings) -> Iterator[httpx.Client]:
    """A gateway whose engine process is stopped, as if it computed for ever."""
    before = descendants(os.getpid())
    with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as client:
        assert client.post("/v1/chat/completions", json=BODY).headers["x-pika-path"] == "routed"
        [engine] = descendants(os.getpid()) - before
        os.kill(engine, signal.SIGSTOP)
        try:
            yield client
        finally:
            os.kill(engine, signal.SIGCONT)


@pytest.fixture
def settings() -> Iterator[Settings]:
    with faults.running(faults.answers) as upstream:
        nano = nano_pool(upstream.url)
        engine = nano.engine.model_copy(update={"deadline_ms": 300.0, "when_unavailable": 503})
        yield nano.model_copy(update={"engine": engine})


def test_503_with_retry_after(settings: Settings) -> None:
    with hung_engine(settings) as client:
        for path, body in (("/v1/chat/completions", BODY), ("/score", {"input": "a"}), ("/route", BODY)):
            answer = client.post(path, json=body)
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "1"
            assert answer.json()["error"]["code"] == "probe_unavailable"
        counted = 'pika_requests_total{arm="none",code="503",path="probe-unavailable",policy="none"} 1.0'
        assert counted in client.get("/metrics").text.splitlines()
        assert client.get("/health").status_code == 200
        assert client.post("/v1/chat/completions", json={**BODY, "model": "auto-min_cost"}).status_code == 200
        assert client.post("/v1/chat/completions", json={**BODY, "model": "nano-small"}).status_code == 200


def test_the_configured_arm_answers(settings: Settings) -> None:
    engine = settings.engine.model_copy(update={"when_unavailable": "nano-large"})
    with hung_engine(settings.model_copy(update={"engine": engine})) as client:
        answer = client.post("/v1/chat/completions", json=BODY)
        assert answer.status_code == 200
        assert answer.headers["x-pika-arm"] == "nano-large"
        assert answer.headers["x-pika-path"] == "probe-unavailable"
        assert "x-pika-success-probability" not in answer.headers


@pytest.mark.parametrize("away", [503, "nano-large"])
def test_who_finds_the_queue_full_is_answered_at_once(away: int | str, settings: Settings, tmp_path: Path) -> None:
    """While one prompt is computed, for as long as the test wants, and another fills the queue."""
    engine = Engine(
        kind="remote", url=f"unix://{tmp_path}/engine.sock", queue=Queue(prompts=1), deadline_ms=30_000,
        when_unavailable=away,
    )  # fmt: skip
    settings = settings.model_copy(update={"engine": engine})
    held = Held(build_pool(settings).artifacts)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(listening(engine.urls[0], held, options=options(engine))) as server,
        serving(create_app(settings)) as url,
        httpx.Client(base_url=url, timeout=90) as client,
        ThreadPoolExecutor(2) as clients,
    ):

        def ask(number: int) -> httpx.Response:
            body = {"model": "auto", "messages": [{"role": "user", "content": f"Begin with {number}. Add 1."}]}
            return client.post("/v1/chat/completions", json=body)

        def queued() -> tuple[int, int]:
            """Prompts that somebody waits for, and those of them that are not yet computed."""
            assert isinstance(server.engine, BatchingEngine)
            return len(server.engine._waiting), len(server.engine._queue)

        held.go.clear()
        computed = clients.submit(ask, 1)
        until(lambda: queued() == (1, 0), 30, "the first is computed")
        waiting = clients.submit(ask, 2)
        until(lambda: queued() == (2, 1), 30, "the second waits")
        answer = ask(3)
        assert not computed.done()
        assert not waiting.done()
        if away == 503:
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "probe_unavailable")
            assert "the engine's queue is full: 1 prompts" in answer.json()["error"]["message"]
        else:
            said = answer.headers["x-pika-path"], answer.headers["x-pika-arm"]
            assert (answer.status_code, said) == (200, ("probe-unavailable", "nano-large"))
        held.go.set()
        for one in (computed, waiting):
            assert one.result().headers["x-pika-path"] == "routed"


def test_a_killed_engine_comes_back(settings: Settings) -> None:
    before = descendants(os.getpid())
    with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as client:
        [engine] = descendants(os.getpid()) - before
        os.kill(engine, signal.SIGKILL)
        until(lambda: client.get("/ready").status_code == 503, 10, "the gateway notices")
        assert [problem["part"] for problem in client.get("/ready").json()["problems"]] == ["engine"]
        until(lambda: client.get("/ready").status_code == 200, 60, "the engine is restarted")
        assert client.post("/v1/chat/completions", json=BODY).headers["x-pika-path"] == "routed"


def test_an_engine_killed_while_clients_wait_for_it_costs_none_of_them_an_answer(settings: Settings) -> None:
    """Stopped first, so that all of them wait; they go on asking until it is back."""
    away = settings.engine.model_copy(update={"deadline_ms": 60_000.0, "when_unavailable": "nano-large"})
    before = descendants(os.getpid())
    with (
        serving(create_app(settings.model_copy(update={"engine": away}))) as url,
        httpx.Client(base_url=url, timeout=90) as client,
        ThreadPoolExecutor(16) as clients,
    ):

        def ask_until_it_is_back(number: int) -> list[tuple[int, str, str]]:
            answers: list[tuple[int, str, str]] = []
            until_s = time.monotonic() + 60
            while len(answers) < 2 or (answers[-1][1] != "routed" and time.monotonic() < until_s):
                question = f"Begin with {number}. Add {len(answers)}."  # no two are equal: each is computed
                body = {"model": "auto", "messages": [{"role": "user", "content": question}]}
                answer = client.post("/v1/chat/completions", json=body)
                answers.append((answer.status_code, answer.headers["x-pika-path"], answer.headers["x-pika-arm"]))
                time.sleep(0.05)
            return answers

        [engine] = descendants(os.getpid()) - before
        os.kill(engine, signal.SIGSTOP)
        asking = [clients.submit(ask_until_it_is_back, number) for number in range(16)]
        time.sleep(0.5)
        assert client.get("/health").status_code == 200
        os.kill(engine, signal.SIGKILL)
        for one in asking:
            *unscored, scored = one.result()
            assert set(unscored) == {(200, "probe-unavailable", "nano-large")}
            assert scored[:2] == (200, "routed")
        assert client.get("/ready").status_code == 200
        assert len(descendants(os.getpid()) - before) == 1


def test_a_departure_from_the_probes_sampling_is_flagged(settings: Settings) -> None:
    with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as client:
        for fields in ({"temperature": 1.5}, {"max_tokens": 3}):
            answer = client.post("/v1/chat/completions", json={**BODY, **fields})
            assert answer.headers["x-pika-flags"] == "policy-changed"
        assert client.post("/v1/chat/completions", json={**BODY, "seed": 1}).headers["x-pika-flags"] == ""
