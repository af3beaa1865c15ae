"""The gateway against upstreams that fail, fall silent and break off, and clients that leave."""

import json
import socket
from contextlib import suppress

import httpx
import pytest

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.processes import until
from tests.support.upstream import Connection, Handler, Request


def test_requests_in_flight_are_bounded() -> None:
    with gateway({"small": [faults.streams_on]}, limits={"in_flight": 1}) as (client, upstreams):
        body = {"model": "auto", "stream": True, "messages": MESSAGES}
        with client.stream("POST", PATH, json=body) as first:
            chunks = first.iter_raw()
            assert next(chunks)
            refused = chat(client)
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "1"
        assert upstreams[0].left.wait(5)


@pytest.mark.parametrize(
    "fault",
    [
        faults.fails_with(500),
        faults.fails_with(502),
        faults.fails_with(503),
        faults.fails_with(429),
        faults.drops_at_once,
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_another_replica_answers(fault: Handler, stream: bool) -> None:
    with gateway({"small": [fault, faults.answers]}) as (client, upstreams):
        answer = chat(client, stream=stream)
        assert answer.status_code == 200
        assert answer.headers["x-pika-attempts"] == "2"
        assert answer.headers["x-pika-path"] == "routed"
        assert [len(one.requests) for one in upstreams] == [1, 1]


@pytest.mark.parametrize("fault", [faults.fails_with(500), faults.drops_at_once, faults.drops_after_head])
def test_then_the_policys_next_choice(fault: Handler) -> None:
    with gateway({"small": [faults.answers], "large": [fault]}) as (client, _):
        answer = chat(client, stream=True)
        assert answer.status_code == 200
        assert answer.headers["x-pika-arm"] == "small"
        assert answer.headers["x-pika-path"] == "fallback"
        assert answer.headers["x-pika-attempts"] == "2"
        pinned = chat(client, model="large", stream=True)
        assert pinned.status_code in (500, 502)
        assert pinned.headers["x-pika-arm"] == "large"


def test_all_replicas_of_an_arm_are_tried_before_another_arm() -> None:
    with gateway({"small": [faults.answers], "large": [faults.drops_at_once] * 2}) as (client, upstreams):
        answer = chat(client)
        assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, "small")
        assert (answer.headers["x-pika-path"], answer.headers["x-pika-attempts"]) == ("fallback", "3")
        assert [len(one.requests) for one in upstreams] == [1, 1, 1]


def test_replicas_that_are_all_unhealthy_are_asked_all_the_same() -> None:
    with gateway({"small": [faults.answers] * 2}) as (client, upstreams):
        for one in upstreams:
            one.health = 503
        until(lambda: client.get("/ready").status_code == 503, 20, "health checks find it")
        assert chat(client).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_follows_a_redirect(stream: bool) -> None:
    with faults.running(faults.answers) as inner:
        away = faults.fails_with(302, f"location: {inner.url}/chat/completions")
        with gateway({"small": [away]}) as (client, _):
            assert chat(client, stream=stream).status_code == 302
        assert inner.requests == []


def test_a_usage_beyond_belief_costs_nothing_and_stops_nothing() -> None:
    usage = b'{"prompt_tokens":1' + b"0" * 400 + b',"completion_tokens":1}'
    last = b'data: {"id":"c","choices":[],"usage":' + usage + b"}\n\ndata: [DONE]\n\n"

    async def streams(request: Request, to: Connection) -> None:
        if request.body.get("user") == "endless":
            await faults.streams_on(request, to)
        else:
            await to.send(faults.EVENTS + faults.chunk(faults.CHUNK) + faults.chunk(last) + faults.chunk(b""))

    with gateway({"small": [streams]}, limits={"total_s": 1}) as (client, _):
        assert "[DONE]" in chat(client, stream=True).text
        assert metric(client, "pika_tokens_total") == 1
        # Time limits are kept, which what counts tokens also looks after.
        assert '"error"' in chat(client, stream=True, user="endless").text
        assert metric(client, 'pika_requests_total{arm="small",code="200"') == 1


def test_a_dead_upstream_is_one_clear_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    with (
        serving(create_app(constant_pool({"small": [url]}))) as base,
        httpx.Client(base_url=base, timeout=20) as client,
    ):
        answer = chat(client)
        assert answer.status_code == 502
        assert "cannot be reached" in answer.json()["error"]["message"]
        assert client.get("/ready").status_code == 503
        assert metric(client, "pika_replica_up") == 0


def test_what_failed_is_counted_where_it_ended() -> None:
    with gateway({"small": [faults.drops_at_once], "large": [faults.drops_at_once]}) as (client, _):
        answer = chat(client)
        assert answer.status_code == 502
        assert (answer.headers["x-pika-arm"], answer.headers["x-pika-path"]) == ("small", "fallback")
        assert metric(client, 'pika_requests_total{arm="small",code="502",path="fallback"') == 1


def test_a_client_error_of_the_upstream_is_relayed() -> None:
    with gateway({"small": [faults.answers], "large": [faults.fails_with(400)]}) as (client, upstreams):
        answer = chat(client)
        assert (answer.status_code, answer.json()) == (400, {"error": {"message": "no"}})
        assert len(upstreams[0].requests) == 0


def test_silence_times_out() -> None:
    limits = {"first_byte_s": 0.3, "total_s": 0.5}
    with gateway({"small": [faults.hangs]}, limits=limits) as (client, upstreams):
        for stream in (True, False):
            answer = chat(client, stream=stream)
            assert answer.status_code == 504
            assert answer.json()["error"]["type"] == "upstream_error"
        assert upstreams[0].left.wait(5)


@pytest.mark.parametrize(
    ("fault", "limits"),
    [
        (faults.drops_in_mid_stream, {}),
        (faults.stalls_in_mid_stream, {"between_chunks_s": 0.3}),
        (faults.streams_on, {"total_s": 0.5}),
    ],
)
def test_a_failure_in_mid_stream_ends_with_an_error_event(fault: Handler, limits: dict[str, float]) -> None:
    with gateway({"small": [fault, faults.answers]}, limits=limits) as (client, upstreams):
        answer = chat(client, stream=True)
        assert answer.status_code == 200
        *chunks, last = answer.text.removesuffix("\n\n").split("\n\n")
        assert chunks
        assert "error" in json.loads(last.removeprefix("data: "))
        assert "[DONE]" not in answer.text
        assert len(upstreams[1].requests) == 0, "nothing is sent twice after the first byte"


def test_the_connection_closes_after_a_failure_in_mid_stream() -> None:
    body = json.dumps({"model": "auto", "stream": True, "messages": MESSAGES}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with (
        gateway({"small": [faults.drops_in_mid_stream]}) as (client, _),
        socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as raw,
    ):
        raw.sendall(head + body)
        answer = raw.makefile("rb").read()  # until it is closed
    assert b'"error"' in answer
    assert answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_upstream(stream: bool) -> None:
    handler = faults.streams_on if stream else faults.hangs
    with gateway({"small": [handler]}) as (client, upstreams):
        body = {"model": "auto", "stream": stream, "messages": MESSAGES}
        with suppress(httpx.ReadTimeout), client.stream("POST", PATH, json=body, timeout=0.5) as answer:
            for _ in zip(range(3), answer.iter_raw(), strict=False):
                pass
        assert upstreams[0].left.wait(1), "it is promised within a second"
        assert metric(client, 'pika_requests_total{arm="small",code="499"') == 1


def test_the_least_loaded_replica_takes_the_next_request() -> None:
    with gateway({"small": [faults.streams_on, faults.answers]}) as (client, upstreams):
        body = {"model": "auto", "stream": True, "messages": MESSAGES}
        with client.stream("POST", PATH, json=body) as first:
            chunks = first.iter_raw()
            assert next(chunks)
            for _ in range(3):
                assert chat(client).status_code == 200
        assert [len(one.requests) for one in upstreams] == [1, 3]
