"""Several workers behind one port: one engine, sums of metrics, and whoever dies is replaced while the others go on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import metric
from tests.support.processes import descendants, running, until
from tests.support.serve import BODY, ROOT, Served, served
from tests.test_reload import write

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"


def named(gateway: Served, module: str) -> set[int]:
    """The gateway's processes that run a module."""
    found = set()
    for pid in descendants(gateway.process.pid):
        try:
            if module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.add(pid)
        except OSError:
            continue
    return found


def workers(gateway: Served) -> set[int]:
    return named(gateway, "server.workers.worker")


def ask(gateway: Served) -> httpx.Response:
    """On a connection of its own, which any worker may take."""
    return httpx.post(f"{gateway.client.base_url}{PATH}", json=BODY, timeout=30)


def metrics(gateway: Served, series: str) -> float:
    with httpx.Client(base_url=gateway.client.base_url, timeout=20) as client:
        return metric(client, series)


@contextmanager
def load(gateway: Served, clients: int = 8) -> Iterator[Counter[str]]:
    """Clients that ask without a pause; counts how it went."""
    went: Counter[str] = Counter()
    stop = threading.Event()

    def keep_asking() -> None:
        while not stop.is_set():
            try:
                went[str(ask(gateway).status_code)] += 1
            except httpx.TransportError:
                went["broken"] += 1

    threads = [threading.Thread(target=keep_asking) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield went
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=40)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("pool")
    with faults.running(faults.answers) as upstream, served(write(folder, upstream.url), None, "--workers", "3") as one:
        yield one


def test_workers_share_one_engine_and_their_metrics_add_up(gateway: Served) -> None:
    assert len(workers(gateway)) == 3
    assert len(named(gateway, "probes.engine.worker")) == 1
    before = metrics(gateway, "pika_requests_total{")
    with load(gateway) as went:
        until(lambda: went["200"] > 200, 60, "requests are answered")
    assert set(went) == {"200"}
    until(
        lambda: metrics(gateway, "pika_requests_total{") - before == went["200"], 10, "all workers tell what they did"
    )
    until(lambda: metrics(gateway, "pika_in_flight{") == 0, 10, "nothing is in flight")
    # Every prompt was scored once, by whichever worker asked.
    until(lambda: metrics(gateway, "pika_probe_cache_total{") >= went["200"], 10, "the engine's reports arrive")
    assert metrics(gateway, "pika_activation_percentile_count") == metrics(gateway, "pika_probe_cache_total{")


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)")
def test_promtool_finds_nothing(gateway: Served) -> None:
    exposition = gateway.client.get("/metrics").text
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_what_is_read_when_scraped_is_told_once(gateway: Served) -> None:
    lines = [line for line in gateway.client.get("/metrics").text.splitlines() if not line.startswith("#")]
    assert sum(line.startswith("pika_probe_info{") for line in lines) == 3
    assert sum(line.startswith("pika_replica_up{") for line in lines) == 3
    assert sum(line.startswith("pika_drift ") for line in lines) == 1
    assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)


def test_a_killed_worker_is_replaced_and_the_others_go_on(gateway: Served) -> None:
    before = workers(gateway)
    counted = metrics(gateway, "pika_requests_total{")
    with load(gateway) as earlier:
        until(lambda: earlier["200"] > 50, 60, "requests are answered")
    counted += earlier["200"]
    until(lambda: metrics(gateway, "pika_requests_total{") == counted, 10, "all workers tell what they did")
    with load(gateway) as went:
        until(lambda: went["200"] > 50, 60, "requests are answered")
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        until(lambda: len(workers(gateway)) == 3 and victim not in workers(gateway), 30, "another takes its place")
        asked = went["200"]
        until(lambda: went["200"] > asked + 100, 60, "requests are answered")
    assert before - {victim} < workers(gateway)
    assert set(went) <= {"200", "broken"}
    assert went["broken"] <= 8, "only what the dead worker had open is lost, a connection per client at the most"
    # Of what it answered in its last tenth of a second the dead worker has told nobody.
    assert counted < metrics(gateway, "pika_requests_total{") <= counted + went["200"], "what it had told stays"
    until(lambda: metrics(gateway, "pika_in_flight{") == 0, 10, "what it had in flight does not")


def test_a_killed_engine_is_restarted_and_all_join_it(gateway: Served) -> None:
    [engine] = named(gateway, "probes.engine.worker")
    os.kill(engine, signal.SIGKILL)
    until(lambda: "ended with code -9; restarting it" in "".join(gateway.log), 10, "the parent notices")

    def all_ready() -> bool:
        with ExitStack() as stack:  # held open, so that they spread over the workers
            clients = [stack.enter_context(httpx.Client(base_url=gateway.client.base_url)) for _ in range(12)]
            return all(client.get("/ready").status_code == 200 for client in clients)

    until(all_ready, 60, "all workers have joined the new engine")
    with load(gateway) as went:
        until(lambda: went["200"] > 50, 60, "requests are answered")
    assert set(went) == {"200"}


def test_a_reload_is_taken_by_all_or_by_none(tmp_path: Path) -> None:
    with (
        faults.running(faults.answers) as upstream,
        served(write(tmp_path, upstream.url), None, "--workers", "2") as one,
    ):
        before = workers(one)
        (tmp_path / "pool.yaml").write_text("models: {")
        one.hang_up("reload refused, configuration and probes stay as they were: ")
        write(tmp_path, upstream.url, policy={"name": "min_success", "min_success": 0.5})
        with load(one, clients=2) as went:
            assert {ask(one).headers["x-pika-policy"] for _ in range(20)} == {"max_success"}
            one.hang_up("reloaded: nano-small by")
            assert {ask(one).headers["x-pika-policy"] for _ in range(20)} == {"min_success"}
            until(lambda: len(named(one, "probes.engine.worker")) == 1, 30, "the old engine ends")
        assert set(went) == {"200"}
        assert workers(one) == before
        # Who comes later serves what the others serve.
        os.kill(min(before), signal.SIGKILL)
        until(lambda: len(workers(one) - before) == 1, 30, "another takes its place")
        until(lambda: _answers_all(one), 30, "it answers")
        assert {ask(one).headers["x-pika-policy"] for _ in range(20)} == {"min_success"}
        for result in ("refused", "done"):
            assert metrics(one, f'pika_reloads_total{{result="{result}"}}') == 1


def _answers_all(gateway: Served) -> bool:
    return all(ask(gateway).status_code == 200 for _ in range(10))


def test_a_worker_that_cannot_take_a_reload_keeps_all_as_they_were(tmp_path: Path) -> None:
    """One that dies over it, here."""
    with (
        faults.running(faults.answers) as upstream,
        served(write(tmp_path, upstream.url), None, "--workers", "2") as one,
    ):
        victim = min(workers(one))
        os.kill(victim, signal.SIGSTOP)
        write(tmp_path, upstream.url, policy={"name": "min_success", "min_success": 0.5})
        before = len(one.log)
        one.hang_up("now 2 workers prepare it")
        os.kill(victim, signal.SIGKILL)
        until(lambda: "reload refused" in "".join(one.log[before:]), 60, "the reload is refused")
        until(lambda: len(named(one, "probes.engine.worker")) == 1, 30, "its engine ends")
        until(lambda: len(workers(one)) == 2, 60, "another takes the dead worker's place")
        assert {ask(one).headers["x-pika-policy"] for _ in range(20)} == {"max_success"}


def test_a_stream_outlives_a_reload(tmp_path: Path) -> None:
    with (
        faults.running(faults.streams_on) as upstream,
        served(write(tmp_path, upstream.url), None, "--workers", "2") as one,
    ):
        with one.client.stream("POST", PATH, json={**BODY, "stream": True}) as stream:
            chunks = stream.iter_raw()
            next(chunks)
            one.hang_up("reloaded:")
            for _ in range(20):
                assert next(chunks)
            assert len(named(one, "probes.engine.worker")) == 2
        until(lambda: len(named(one, "probes.engine.worker")) == 1, 30, "the old engine ends after the last stream")


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_gateway_killed_under_load_leaves_nothing_and_starts_again_at_once(tmp_path: Path, count: str) -> None:
    with faults.running(faults.answers) as upstream, socket.create_server(("127.0.0.1", 0)) as reserved:
        port = str(reserved.getsockname()[1])
        reserved.close()
        file = write(tmp_path, upstream.url)
        with served(file, None, "--workers", count, "--port", port) as first:
            started = descendants(first.process.pid)
            with load(first) as went:
                until(lambda: went["200"] > 50, 60, "requests are answered")
                first.process.kill()
                first.process.wait()
            until(lambda: not started & running(), 10, "all that it started ends with it")
        with served(file, None, "--workers", count, "--port", port) as second:
            assert second.client.base_url.port == int(port)
            assert ask(second).status_code == 200


def test_what_a_worker_cannot_load_ends_the_command_with_one_line(tmp_path: Path) -> None:
    from server.__main__ import main

    file = write_pool(tmp_path, {"small": ["http://127.0.0.1:1/v1"]})
    data = yaml.safe_load(file.read_text())
    data["arms"]["small"]["probe"] = "none"
    del data["arms"]["small"]["success_probability"]
    file.write_text(yaml.safe_dump(data))
    assert main(["serve", str(file), "--port", "0", "--workers", "2"]) == 2


def test_log_lines_name_their_worker(tmp_path: Path) -> None:
    with faults.running(faults.answers) as upstream:
        file = write_pool(tmp_path, {"small": [upstream.url]})
        with served(file, None, "--workers", "2", "--log-format", "json") as one:
            ids = {ask(one).headers["x-request-id"] for _ in range(20)}
            until(lambda: len(re.findall('"message":"request"', "".join(one.log))) == 20, 10, "all lines are there")
        lines = [json.loads(line) for line in one.log]
    requests = [line for line in lines if line["message"] == "request"]
    assert {line["request_id"] for line in requests} == ids
    assert {line["worker"] for line in requests} <= {0, 1}


SECRET, KEY = "the-capital-of-nowhere", "sk-a-key-of-a-client"


def test_what_is_asked_and_answered_is_never_logged(tmp_path: Path) -> None:
    """Nor are keys, whatever goes wrong and however much is logged."""

    async def repeats(request: faults.Request, to: faults.Connection) -> None:
        if request.body["messages"][0]["content"].endswith("fail"):
            return await faults.drops_at_once(request, to)
        answer = faults.ANSWER | {"choices": [{"index": 0, "message": request.body["messages"][0]}]}
        await to.send(faults.response(200, json.dumps(answer).encode()))

    with faults.running(repeats) as upstream:
        file = write_pool(tmp_path, {"small": [upstream.url]})
        with served(file, None, "--log-level", "debug", "--log-format", "json") as one:
            headers = {"authorization": f"Bearer {KEY}"}
            for content in (SECRET, f"{SECRET} fail", [SECRET], {"text": SECRET}):
                body = {"model": "auto", "messages": [{"role": "user", "content": content}], SECRET: SECRET}
                one.client.post(PATH, json=body, headers=headers)
            one.client.post(PATH, content=f'{{"model": "{SECRET}"'.encode(), headers=headers)
            one.client.post(f"/{SECRET}", headers=headers)
            until(lambda: "".join(one.log).count('"message":"request"') == 6, 10, "each is logged")
        log = "".join(one.log)
        assert SECRET not in log
        assert KEY not in log


def test_workers_join_an_engine_that_runs_elsewhere(tmp_path: Path) -> None:
    engine = {"kind": "remote", "url": f"unix://{tmp_path}/engine.sock"}
    with faults.running(faults.answers) as upstream:
        file = write(tmp_path, upstream.url, engine=engine)
        command = [sys.executable, "-m", "server", "engine", str(file)]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            try:
                assert process.stderr is not None
                assert any("engine ready" in line for line in process.stderr)
                with served(file, None, "--workers", "2") as one:
                    assert not named(one, "probes.engine.worker")
                    assert {ask(one).headers["x-pika-path"] for _ in range(20)} == {"routed"}
            finally:
                process.terminate()


@pytest.mark.parametrize("count", ["1", "2"])
def test_what_needs_a_restart_is_named_by_a_reload(tmp_path: Path, count: str) -> None:
    urls = {"small": ["http://127.0.0.1:1/v1"]}
    with served(write_pool(tmp_path, urls), None, "--workers", count) as one:
        write_pool(tmp_path, urls, server={"public": True, "drain_s": 1})
        one.hang_up("reloaded:")
        [said] = [line for line in one.log if "restart the gateway" in line]
        assert "server.public has changed" in said
