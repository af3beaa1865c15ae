"""Upstreams whose answers are broken: another replica answers, or once a byte was passed on an error event ends it."""

import json
from contextlib import ExitStack

import httpx
import pytest

from server import state
from server.app import create_app
from server.upstream import health
from tests.support import broken_http as broken
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, with_arm_limits
from tests.support.upstream import CHUNK, EVENTS, WHOLE, Handler

BROKEN_WHOLE: dict[str, Handler] = {
    "content length too long": broken.promises_too_much,
    "content length too short": broken.promises_too_little,
    "no HTTP": broken.speaks_no_http,
    "malformed JSON": broken.broken_json,
    "huge head": broken.huge_head,
    "huge head, whole": broken.whole_huge_head,
    "no such code": broken.no_such_code,
    "without end": broken.answers_without_end,
}
STALLED_WHOLE: dict[str, Handler] = {
    "silence": faults.hangs,
    "slow headers": broken.drips_its_head,
    "hang after headers": broken.hangs_before_its_body,
}
BROKEN_STREAM: dict[str, Handler] = {
    "silence": faults.hangs,
    "slow headers": broken.drips_its_head,
    "hang after headers": broken.hangs_after_head,
    "no events": broken.no_events,
    "no HTTP": broken.speaks_no_http,
}
LIMITS = {"first_byte_s": 0.5, "total_s": 5}
"""Of the arm that answers; the other's total is shorter, so that it does not use up the test's time."""


@pytest.mark.parametrize("fault", BROKEN_WHOLE.values(), ids=BROKEN_WHOLE)
def test_another_replica_gives_the_whole_answer(fault: Handler) -> None:
    with gateway({"small": [fault, faults.answers]}) as (client, _):
        answer = chat(client)
        assert (answer.status_code, answer.content) == (200, WHOLE)
        assert answer.headers["x-pika-attempts"] == "2"


@pytest.mark.parametrize("fault", BROKEN_WHOLE.values(), ids=BROKEN_WHOLE)
def test_without_another_there_is_one_clear_error(fault: Handler) -> None:
    with gateway({"small": [fault]}) as (client, _):
        answer = chat(client)
        assert answer.status_code == 502
        assert answer.json()["error"]["type"] == "upstream_error"


@pytest.mark.parametrize("fault", STALLED_WHOLE.values(), ids=STALLED_WHOLE)
def test_a_whole_answer_that_does_not_come_may_be_generating_until_its_time_is_up(fault: Handler) -> None:
    limits = {"first_byte_s": 0.1, "total_s": 0.6}
    with gateway({"small": [fault, faults.answers]}, limits=limits) as (client, upstreams):
        answer = chat(client)
        assert (answer.status_code, answer.headers["x-pika-attempts"]) == (504, "1")
        assert answer.json()["error"]["type"] == "upstream_error"
        assert upstreams[0].left.wait(5)
        assert upstreams[1].requests == []


def test_nothing_is_tried_again_once_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "TICK_S", 60)  # the attempt's own timer is first
    with gateway({"small": [faults.hangs, faults.answers]}, limits={"total_s": 0.3}) as (client, upstreams):
        assert chat(client).status_code == 504
        assert upstreams[1].requests == []


@pytest.mark.parametrize("fault", BROKEN_STREAM.values(), ids=BROKEN_STREAM)
def test_another_replica_streams(fault: Handler) -> None:
    with gateway({"small": [fault, faults.answers]}, limits=LIMITS) as (client, _):
        answer = chat(client, stream=True)
        assert answer.content == CHUNK * 3 + b"data: [DONE]\n\n"
        assert answer.headers["x-pika-attempts"] == "2"


@pytest.mark.parametrize("begun", [b"", CHUNK[:20]], ids=["after an event", "inside an event"])
@pytest.mark.parametrize("drops", [False, True], ids=["broken chunks", "drop"])
def test_after_its_last_whole_event_a_broken_stream_has_an_error_event(drops: bool, begun: bytes) -> None:
    async def handler(request: faults.Request, to: faults.Connection) -> None:
        await to.send(EVENTS + faults.chunk(CHUNK + begun))
        await to.upstream.go_on.wait()
        if drops:
            to.writer.transport.abort()
        else:
            await to.send(b"no length\r\n")

    with gateway({"small": [handler]}) as (client, upstreams):
        body = {"model": "auto", "stream": True, "messages": MESSAGES}
        with client.stream("POST", PATH, json=body) as answer:
            chunks = answer.iter_raw()
            assert next(chunks) == CHUNK
            upstreams[0].let_go_on()
            last = b"".join(chunks)
        assert last.endswith(b"}\n\n")
        assert "error" in json.loads(last.removeprefix(b"data: "))


def test_garbled_events_pass_as_they_are() -> None:
    with gateway({"small": [broken.garbles_an_event]}) as (client, _):
        assert chat(client, stream=True).content == broken.garbled_event


def test_a_stream_without_end_ends_with_its_total_time() -> None:
    with gateway({"small": [faults.streams_on]}, limits={"total_s": 0.5}) as (client, upstreams):
        answer = chat(client, stream=True)
        assert "limits.total_s" in answer.text.removesuffix("\n\n").split("\n\n")[-1]
        assert upstreams[0].left.wait(5)


@pytest.mark.parametrize(
    ("fault", "stream", "own", "code", "said"),
    [
        (faults.hangs, False, "total_s", 504, "0.3 s"),
        (faults.hangs, True, "first_byte_s", 504, "did not answer within 0.3 s"),
        (faults.stalls_in_mid_stream, True, "between_chunks_s", 200, "sent nothing for 0.3 s"),
    ],
)
def test_an_arms_own_limits_win(fault: Handler, stream: bool, own: str, code: int, said: str) -> None:
    with gateway({"small": [fault]}, limits={own: 15}, arm_limits={own: 0.3}) as (client, upstreams):
        answer = chat(client, stream=stream)
        assert (answer.status_code, said in answer.text) == (code, True)
        assert upstreams[0].left.wait(5)


def test_an_arms_own_time_to_connect_wins() -> None:
    with faults.running(faults.hangs) as deaf:  # to TLS, so that a connection never comes about
        pool = constant_pool({"small": [deaf.url.replace("http:", "https:")]}, limits={"connect_s": 15})
        with serving(create_app(with_arm_limits(pool, connect_s=0.3))) as base:
            answer = httpx.post(f"{base}{PATH}", json={"model": "auto", "messages": MESSAGES}, timeout=20)
    assert answer.status_code == 502
    assert "longer than 0.3 seconds" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("fault", "code", "attempts"), [(None, 200, "7"), (faults.fails_with(500), 500, "6")])
def test_any_number_of_replicas_that_cannot_be_reached_is_passed_over_but_few_that_fail(
    fault: Handler | None, code: int, attempts: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a health check has found out, and for a pinned arm, which has nothing else."""
    monkeypatch.setattr(health, "HEALTH_INTERVAL_S", 60)
    with ExitStack() as fleet, faults.running(faults.answers) as good:
        bad = [fleet.enter_context(faults.running(fault or faults.answers)) for _ in range(6)]
        pool = constant_pool({"small": [*(one.url for one in bad), good.url]})
        with serving(create_app(pool)) as base:
            if fault is None:
                fleet.close()  # they are gone
            answer = httpx.post(f"{base}{PATH}", json={"model": "small", "messages": MESSAGES}, timeout=20)
    assert (answer.status_code, answer.headers["x-pika-attempts"]) == (code, attempts)


def test_a_client_that_does_not_read_holds_up_the_upstream_not_the_memory() -> None:
    sent = 0

    async def floods(_: faults.Request, to: faults.Connection) -> None:
        nonlocal sent
        await to.send(EVENTS)
        event = b"data: " + b"x" * 65_536 + b"\n\n"
        try:
            while not to.reader.at_eof():
                await to.send(faults.chunk(event))
                sent += len(event)
        finally:
            to.upstream.left.set()

    with gateway({"small": [floods]}, limits={"total_s": 2}) as (client, upstreams):
        body = {"model": "auto", "stream": True, "messages": MESSAGES}
        with client.stream("POST", PATH, json=body) as answer:
            assert next(answer.iter_raw())
            assert upstreams[0].left.wait(10), "the request's time is up although nobody reads"
        assert sent < 64 * 1024 * 1024


def test_content_encoding_passes_with_its_bytes() -> None:
    squeezed = b"\x1f\x8b not for us \n\n to read"
    whole = broken.answers_with(squeezed, 200, "content-encoding: gzip")
    with (
        gateway({"small": [whole]}) as (client, _),
        client.stream("POST", PATH, json={"model": "auto", "messages": MESSAGES}) as answer,
    ):
        assert answer.headers["content-encoding"] == "gzip"
        assert b"".join(answer.iter_raw()) == squeezed


def test_hop_by_hop_headers_stay_on_their_hop() -> None:
    handler = broken.answers_with(WHOLE, 200, "connection: x-mine, keep-alive", "x-mine: 1", "x-other: 2", "te: no")
    with gateway({"small": [handler]}) as (client, upstreams):
        headers = {"connection": "x-hop, keep-alive", "x-hop": "1", "x-kept": "2", "te": "trailers"}
        answer = chat(client, headers)
        assert "x-mine" not in answer.headers
        assert "te" not in answer.headers
        assert answer.headers["x-other"] == "2"
        sent = upstreams[0].requests[0].headers
        assert sent["x-kept"] == "2"
        assert not {"x-hop", "te", "connection"} & set(sent)


def test_repeated_headers_survive_both_ways() -> None:
    handler = broken.answers_with(WHOLE, 200, "x-many: 1", "x-many: 2")
    with gateway({"small": [handler]}) as (client, upstreams):
        request = client.build_request(
            "POST", PATH, json={"model": "auto", "messages": MESSAGES}, headers=[("x-many", "a"), ("x-many", "b")]
        )
        answer: httpx.Response = client.send(request)
        assert answer.headers.get_list("x-many") == ["1", "2"]
        assert upstreams[0].requests[0].repeated["x-many"] == ["a", "b"]
