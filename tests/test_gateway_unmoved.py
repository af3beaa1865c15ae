"""The gateway while its upstreams are gone, busy or coming back."""

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import chat, gateway, metric
from tests.support.processes import until
from tests.support.upstream import WHOLE, Connection, Handler, Request


def closed_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port: int = unused.getsockname()[1]
    return port


@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_server_error_that_stays_is_relayed_as_it_is(status: int) -> None:
    with gateway({"small": [faults.fails_with(status)]}) as (client, _):
        answer = chat(client)
        assert (answer.status_code, answer.json()) == (status, {"error": {"message": "no"}})


@contextmanager
def listening(greeting: bytes | None) -> Iterator[int]:
    """A port that greets whoever connects; with None its queue is full, so that no connection comes about."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, ExitStack() as stack:
        port = server.getsockname()[1]
        if greeting is None:
            for _ in range(4):
                waiting = stack.enter_context(socket.socket())
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
        else:

            def greet() -> None:
                with suppress(OSError):
                    while True:
                        with server.accept()[0] as connection:
                            connection.sendall(greeting)

            threading.Thread(target=greet, daemon=True).start()
            stack.callback(server.shutdown, socket.SHUT_RDWR)
        yield port


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:{closed}/v1", "cannot be reached"),
        ("http://no-such-host.invalid/v1", "cannot be reached"),
        ("https://127.0.0.1:{greeting}/v1", "TLS"),
        ("http://127.0.0.1:{full}/v1", "no connection within 0.5 s"),
    ],
    ids=["refused", "DNS", "TLS", "no connection"],
)
def test_what_cannot_be_reached_is_passed_over(url: str, said: str) -> None:
    with ExitStack() as stack:
        greeting = stack.enter_context(listening(b"220 smtp.example ESMTP\r\n"))
        full = stack.enter_context(listening(None))
        good = stack.enter_context(faults.running(faults.answers))
        bad = url.format(closed=closed_port(), greeting=greeting, full=full)
        settings = constant_pool({"small": [bad], "large": [good.url]}, limits={"connect_s": 0.5})
        client = httpx.Client(base_url=stack.enter_context(serving(create_app(settings))), timeout=20)
        stack.enter_context(client)
        pinned = chat(client, model="small")
        assert pinned.status_code == 502
        assert said in pinned.json()["error"]["message"]
        routed = chat(client, model="auto-min_cost")
        assert (routed.status_code, routed.headers["x-pika-arm"]) == (200, "large")
        assert routed.headers["x-pika-path"] == "fallback"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, which makes a certificate")
@pytest.mark.parametrize("trusted", [False, True])
def test_tls_is_checked(trusted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*made, "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate, key)
    with faults.running(faults.answers, tls=tls) as upstream:
        settings = constant_pool({"small": [upstream.url.replace("http:", "https:")]})
        with serving(create_app(settings)) as base, httpx.Client(base_url=base, timeout=20) as client:
            assert client.get("/ready").status_code == (200 if trusted else 503)
            for _ in range(3):
                answer = chat(client)
                if trusted:
                    assert answer.content == WHOLE
                else:
                    assert answer.status_code == 502
                    assert "certificate" in answer.json()["error"]["message"].lower()


def test_a_pinned_arm_falls_back_only_where_the_client_asks() -> None:
    with gateway({"small": [faults.answers], "large": [faults.fails_with(500)]}) as (client, upstreams):
        assert chat(client, model="large").status_code == 500
        assert len(upstreams[0].requests) == 0
        for how in ({"routing": {"fallback": True}}, {"headers": {"x-pika-fallback": "true"}}):
            answer = chat(client, model="large", **how)
            assert answer.status_code == 200
            assert answer.headers["x-pika-arm"] == "small"
            assert (answer.headers["x-pika-path"], answer.headers["x-pika-policy"]) == ("fallback", "utility")


def test_a_routed_request_stays_with_its_arm_where_the_client_asks() -> None:
    with gateway({"small": [faults.answers], "large": [faults.fails_with(500)]}) as (client, upstreams):
        answer = chat(client, routing={"fallback": False})
        assert (answer.status_code, answer.headers["x-pika-path"]) == (500, "routed")
        assert len(upstreams[0].requests) == 0
        assert chat(client, routing={"fallback": "yes"}).status_code == 400


def test_a_busy_replica_is_set_aside_for_as_long_as_it_asks() -> None:
    with gateway({"small": [faults.fails_with(429, "retry-after: 30"), faults.answers]}) as (client, upstreams):
        for _ in range(4):
            assert chat(client).status_code == 200
        assert [len(one.requests) for one in upstreams] == [1, 4]


def test_retry_after_reaches_the_client_where_nobody_else_may_answer() -> None:
    with gateway({"small": [faults.fails_with(429, "retry-after: 30")]}) as (client, _):
        for _ in range(7):
            answer = chat(client)
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "30")
        assert metric(client, "pika_breaker_open") == 0


def test_an_arm_whose_replicas_are_set_aside_leaves_its_requests_to_the_next() -> None:
    busy = faults.fails_with(503, "retry-after: Thu, 26 Nov 2099 00:00:00 GMT")
    with gateway({"small": [faults.answers], "large": [busy]}) as (client, upstreams):
        for attempts in ("2", "1", "1"):
            answer = chat(client)
            assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, "small")
            assert (answer.headers["x-pika-path"], answer.headers["x-pika-attempts"]) == ("fallback", attempts)
        assert chat(client, model="large").status_code == 503
        assert len(upstreams[1].requests) == 2


def test_a_429_without_retry_after_sets_nobody_aside() -> None:
    with gateway({"small": [faults.fails_with(429)]}) as (client, upstreams):
        for _ in range(10):
            assert chat(client).status_code == 429
        assert len(upstreams[0].requests) == 10
        assert metric(client, "pika_breaker_open") == 0


def test_a_replica_that_fails_is_left_alone_then_tried_again() -> None:
    healthy = False

    async def handler(request: Request, to: Connection) -> None:
        await (faults.answers if healthy else faults.fails_with(500))(request, to)

    with gateway({"small": [handler]}) as (client, upstreams):
        for _ in range(5):
            assert chat(client).status_code == 500
        refused = chat(client)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "upstream_down"
        assert int(refused.headers["retry-after"]) >= 1
        assert len(upstreams[0].requests) == 5
        assert metric(client, "pika_breaker_open") == 1
        healthy = True
        until(lambda: chat(client).status_code == 200, 20, "the breaker lets a request through")
        assert metric(client, "pika_breaker_open") == 0
        assert chat(client).status_code == 200


def test_long_generations_and_client_errors_open_no_breaker() -> None:
    slow = {"total_s": 0.3}
    with gateway({"small": [faults.hangs], "large": [faults.fails_with(400)]}, limits=slow) as (client, upstreams):
        for _ in range(7):
            assert chat(client, model="small").status_code == 504
            assert chat(client, model="large").status_code == 400
        assert metric(client, "pika_breaker_open") == 0
        assert [len(one.requests) for one in upstreams] == [7, 7]


def test_a_restarted_replica_is_used_again_without_an_error() -> None:
    """A kept connection that the server closed meanwhile is replaced."""
    closing: Handler

    async def closing(request: Request, to: Connection) -> None:
        await faults.answers(request, to)
        to.writer.close()

    with gateway({"small": [closing]}) as (client, upstreams):
        for _ in range(20):
            answer = chat(client)
            assert (answer.status_code, answer.headers["x-pika-attempts"]) == (200, "1")
        assert len(upstreams[0].requests) == 20


def test_all_arms_gone_and_back() -> None:
    port = closed_port()
    settings = constant_pool({"small": [f"http://127.0.0.1:{port}/v1"], "large": [f"http://127.0.0.1:{port}/v1"]})
    with serving(create_app(settings)) as base, httpx.Client(base_url=base, timeout=20) as client:
        for _ in range(6):
            assert chat(client).status_code in (502, 503)
        assert client.get("/ready").status_code == 503
        with faults.running(faults.answers, port):
            until(lambda: chat(client).status_code == 200, 20, "the restarted server is used")
            until(lambda: client.get("/ready").status_code == 200, 10, "the health check notices")


def test_an_unhealthy_replica_gets_nothing_while_another_is_well() -> None:
    with gateway({"small": [faults.answers, faults.answers]}) as (client, upstreams):
        upstreams[0].health = 503
        until(lambda: metric(client, "pika_replica_up") == 1, 10, "the health check notices")
        before = len(upstreams[0].requests)
        for _ in range(6):
            assert chat(client).status_code == 200
        assert len(upstreams[0].requests) == before


def test_vllms_own_queue_steers_requests() -> None:
    with gateway({"small": [faults.answers, faults.answers]}) as (client, upstreams):
        upstreams[0].metrics = b'vllm:num_requests_waiting{engine="0"} 40\n'

        def steered() -> bool:
            before = len(upstreams[0].requests)
            for _ in range(4):
                assert chat(client).status_code == 200
            return len(upstreams[0].requests) == before

        until(steered, 10, "the waiting requests are noticed")


def test_a_conversation_stays_with_its_replica_where_its_model_says_so() -> None:
    with ExitStack() as stack:
        upstreams = [stack.enter_context(faults.running(faults.answers)) for _ in range(2)]
        settings = constant_pool({"small": [one.url for one in upstreams]})
        models = {"small": settings.models["small"].model_copy(update={"prefix_affinity": True})}
        app = create_app(settings.model_copy(update={"models": models}))
        client = stack.enter_context(httpx.Client(base_url=stack.enter_context(serving(app)), timeout=20))
        for question in range(12):
            begun = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"Question {question}?"}]
            for more in ([], [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Sure?"}]):
                assert chat(client, messages=begun + more).status_code == 200
        asked = [{sent.body["messages"][1]["content"] for sent in one.requests} for one in upstreams]
        assert not asked[0] & asked[1]
        assert asked[0]
        assert asked[1]


def test_a_hundred_megabytes_are_refused_and_the_gateway_serves_on() -> None:
    with gateway({"small": [faults.answers]}) as (client, upstreams):
        refused = client.post("/v1/chat/completions", content=b"x" * 100 * 1024 * 1024)
        assert refused.status_code == 413
        assert chat(client).content == WHOLE
        assert len(upstreams[0].requests) == 1


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    with gateway({"small": [faults.answers]}, limits={"body_s": 0.3, "in_flight": 1}) as (client, _):
        with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as slow:
            slow.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
            answer = slow.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"limits.body_s" in answer
        assert chat(client).status_code == 200
