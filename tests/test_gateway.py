"""The gateway against upstreams that misbehave, on real sockets. tests/test_gateway_vllm.py has the real ones."""

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import httpx
import pytest

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.upstream import Handler, Upstream

PATH = "/v1/chat/completions"
DEEP = b'{"model":"auto","messages":[{"role":"user","content":"a"}],"x":' + b"[" * 300 + b"]" * 300 + b"}"
MESSAGES = [{"role": "user", "content": "How much is 1 + 1?"}]


@contextmanager
def gateway(handlers: dict[str, list[Handler]], **sections: Any) -> Iterator[tuple[httpx.Client, list[Upstream]]]:
    """A gateway over one upstream per handler; yields a client and the upstreams in order."""
    with ExitStack() as stack:
        upstreams: list[Upstream] = []
        urls: dict[str, list[str]] = {}
        for name, behaviours in handlers.items():
            running = [stack.enter_context(faults.running(one)) for one in behaviours]
            upstreams += running
            urls[name] = [one.url for one in running]
        base = stack.enter_context(serving(create_app(constant_pool(urls, **sections))))
        yield stack.enter_context(httpx.Client(base_url=base, timeout=20)), upstreams


def chat(client: httpx.Client, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "auto", "messages": MESSAGES, **fields}
    return client.post(PATH, json=body, headers=headers)


def metric(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


@pytest.fixture(scope="module")
def pool() -> Iterator[tuple[httpx.Client, list[Upstream]]]:
    with gateway({"small": [faults.answers], "large": [faults.answers]}) as running:
        yield running


def test_answers_pass_byte_for_byte(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    assert chat(client).content == faults.WHOLE


def test_headers_explain_the_decision(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    for stream in (False, True):
        headers = chat(client, {"x-request-id": "mine-1", "x-pika-debug": "1"}, stream=stream).headers
        assert headers["x-request-id"] == "mine-1"
        assert headers["x-pika-arm"] == headers["x-model-router-selected-model"] == "large"
        assert headers["x-pika-policy"] == "utility"
        assert headers["x-pika-path"] == "routed"
        assert headers["x-pika-flags"] == "uncalibrated"
        assert headers["x-pika-attempts"] == "1"
        assert float(headers["x-pika-success-probability"]) == pytest.approx(0.7)
        assert float(headers["x-pika-expected-cost-usd"]) == pytest.approx(90e-6)
        assert float(headers["x-pika-routing-ms"]) >= 0
        assert headers["x-pika-success-probabilities"] == "small=0.5000,large=0.7000"


def test_knobs_by_alias_body_and_header(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    assert chat(client).headers["x-pika-arm"] == "large"
    assert chat(client, model="auto-utility-1").headers["x-pika-arm"] == "small"
    assert chat(client, routing={"lambda": 1}).headers["x-pika-arm"] == "small"
    assert chat(client, {"x-pika-lambda": "1"}).headers["x-pika-arm"] == "small"
    assert chat(client, routing={"arms": ["small"]}).headers["x-pika-arm"] == "small"
    assert chat(client, model="auto-cascade-0.4").headers["x-pika-arm"] == "small"
    assert chat(client, model="auto-min_cost").headers["x-pika-arm"] == "small"
    infeasible = chat(client, model="auto-min_success-0.95").headers
    assert (infeasible["x-pika-arm"], infeasible["x-pika-flags"]) == ("large", "infeasible,uncalibrated")
    too_dear = chat(client, routing={"max_cost_usd": 1e-9}).headers
    assert (too_dear["x-pika-arm"], too_dear["x-pika-flags"]) == ("small", "infeasible,uncalibrated")


def test_an_arms_name_pins_it(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    headers = chat(client, model="small").headers
    assert (headers["x-pika-arm"], headers["x-pika-path"]) == ("small", "pinned")


def test_fields_reach_the_upstream_as_sent(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, upstreams = pool
    fields = {
        "response_format": {"type": "json_object"},
        "seed": 7, "n": 2, "logprobs": True, "temperature": 0.25, "vllm_xargs": {"a": [1, None, "ü"]},
    }  # fmt: skip
    headers = {"traceparent": "00-1-2-01", "authorization": "Bearer client-key", "x-pika-policy": "max_success"}
    assert chat(client, headers, routing={"lambda": 0}, **fields).status_code == 200
    sent = upstreams[1].requests[-1]
    assert sent.body == {"model": "large", "messages": MESSAGES, **fields}
    assert sent.headers["traceparent"] == "00-1-2-01"
    assert len(sent.headers["x-request-id"]) == 32
    assert "authorization" not in sent.headers
    assert "x-pika-policy" not in sent.headers


def test_tools_go_as_sent_and_only_where_they_are_supported(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, upstreams = pool
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "x-mine": [1, None]}}}]
    refused = chat(client, tools=tools)
    assert refused.status_code == 400
    assert "supports tools" in refused.json()["error"]["message"]
    pinned = chat(client, model="large", tools=tools, tool_choice="auto")
    assert pinned.headers["x-pika-flags"] == "tools-unseen,uncalibrated"
    assert upstreams[1].requests[-1].body["tools"] == tools
    assert upstreams[1].requests[-1].body["tool_choice"] == "auto"


def test_headers_that_are_not_ascii_pass(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, upstreams = pool
    body = {"model": "auto", "messages": MESSAGES}
    answer = client.post(PATH, json=body, headers=[(b"x-title", "café".encode("latin-1"))])
    assert answer.status_code == 200
    assert upstreams[1].requests[-1].headers["x-title"] == "café"


def test_arm_fields_win_over_the_client_and_defaults_yield(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    _, upstreams = pool
    settings = constant_pool({"small": [upstreams[0].url]})
    arm = settings.arms["small"].model_copy(
        update={"request": {"max_tokens": 16}, "defaults": {"temperature": 0.7, "top_p": 0.9}}
    )
    settings = settings.model_copy(update={"arms": {"small": arm}})
    with serving(create_app(settings)) as base, httpx.Client(base_url=base, timeout=20) as client:
        fields = {"max_completion_tokens": 4000, "temperature": None, "top_p": 0.5}
        assert chat(client, **fields).status_code == 200
    sent = upstreams[0].requests[-1].body
    assert sent == {"model": "small", "messages": MESSAGES, "max_tokens": 16, "temperature": 0.7, "top_p": 0.5}


def test_streams_lose_only_our_own_usage_chunk(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, upstreams = pool
    output_tokens = 'pika_tokens_total{arm="large",kind="output"}'
    before = metric(client, output_tokens)
    stream = chat(client, stream=True)
    assert stream.content == faults.CHUNK * 3 + b"data: [DONE]\n\n"
    assert upstreams[1].requests[-1].body["stream_options"] == {"include_usage": True}
    asked = chat(client, stream=True, stream_options={"include_usage": True})
    assert asked.content == faults.CHUNK * 3 + faults.LAST
    assert (
        metric(client, 'pika_tokens_total{arm="large",kind="output"}') == before + 2 * faults.USAGE["completion_tokens"]
    )


def test_counters_add_up_with_usage() -> None:
    with gateway({"small": [faults.answers], "large": [faults.answers]}) as (client, _):
        assert metric(client, "pika_cost_usd_total") == 0
        for model in ("auto", "auto", "small"):
            assert chat(client, model=model).status_code == 200
        tokens = faults.USAGE["prompt_tokens"], faults.USAGE["completion_tokens"]
        small = (tokens[0] * 0.1 + tokens[1] * 0.4) / 1e6
        assert metric(client, 'pika_cost_usd_total{arm="large"}') == pytest.approx(2 * 10 * small)
        assert metric(client, 'pika_cost_usd_total{arm="small"}') == pytest.approx(small)
        assert metric(client, 'pika_expected_correct_total{arm="large"}') == pytest.approx(2 * 0.7)
        # Always large: two answers as they were, one with large's mean output tokens (20) in place of small's.
        always = 2 * 10 * small + (tokens[0] * 1 + 20 * 4) / 1e6
        assert metric(client, 'pika_cost_always_usd_total{arm="large"}') == pytest.approx(always)
        assert metric(client, 'pika_requests_total{arm="large",code="200"') == 2
        assert metric(client, 'pika_in_flight{arm="large"}') == 0


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b"{", "not valid JSON"),
        (400, b"[]", "must be a JSON object"),
        (400, b"\xff\xfe", "not valid JSON"),
        (400, b"{}", "model must be a string"),
        (400, b'{"model":1,"messages":[]}', "model must be a string"),
        (400, b'{"model":"auto"}', "messages must be a list"),
        (400, b'{"model":"auto","messages":[]}', "at least one message"),
        (400, b'{"model":"auto","messages":["hi"]}', "messages[0] must be an object"),
        (400, b'{"model":"auto","messages":[{"role":"user","content":3}]}', "messages[0].content"),
        (400, b'{"model":"auto","messages":[{"role":"user","content":["hi"]}]}', "messages[0].content[0]"),
        (400, b'{"model":"auto","stream":"yes","messages":[{"role":"user","content":"a"}]}', "stream must be"),
        (400, b'{"model":"auto-guess","messages":[{"role":"user","content":"a"}]}', "unknown policy"),
        (400, b'{"model":"auto","routing":{"lambda":-1},"messages":[{"role":"user","content":"a"}]}', "at least 0"),
        (400, b'{"model":"auto","routing":{"knob":1},"messages":[{"role":"user","content":"a"}]}', "routing.knob"),
        (400, b'{"model":"auto-target_accuracy-0.9","messages":[{"role":"user","content":"a"}]}', "pika tune"),
        (400, b'{"model":"small","routing":{"knob":1},"messages":[{"role":"user","content":"a"}]}', "routing.knob"),
        (
            400,
            b'{"model":"small","routing":[],"messages":[{"role":"user","content":"a"}]}',
            "routing must be an object",
        ),
        (400, DEEP, "nested too deeply"),
        (404, b'{"model":"gpt-4","messages":[{"role":"user","content":"a"}]}', "'gpt-4' does not exist"),
    ],
)
def test_bad_requests(pool: tuple[httpx.Client, list[Upstream]], status: int, body: bytes, message: str) -> None:
    client, _ = pool
    answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"
    assert "x-request-id" in answer.headers


def test_bodies_are_bounded() -> None:
    with gateway({"small": [faults.answers]}, limits={"body_mb": 0.01}) as (client, _):
        assert chat(client, messages=[{"role": "user", "content": "a" * 20_000}]).status_code == 413
        parts = (b"x" * 8000 for _ in range(3))  # chunked: no length to look at
        assert client.post(PATH, content=parts).status_code == 413


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


def test_unknown_paths_and_methods_answer_in_openais_form(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    refused = client.get(PATH)
    assert refused.status_code == 405


@pytest.mark.parametrize(
    "fault", [faults.fails_with(500), faults.fails_with(503), faults.fails_with(429), faults.drops_at_once]
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


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_upstream(stream: bool) -> None:
    handler = faults.streams_on if stream else faults.hangs
    with gateway({"small": [handler]}) as (client, upstreams):
        body = {"model": "auto", "stream": stream, "messages": MESSAGES}
        with suppress(httpx.ReadTimeout), client.stream("POST", PATH, json=body, timeout=0.5) as answer:
            for _ in zip(range(3), answer.iter_raw(), strict=False):
                pass
        assert upstreams[0].left.wait(5)
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


def test_route_decides_without_sending(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, upstreams = pool
    sent = [len(one.requests) for one in upstreams]
    answer = client.post("/route", json={"model": "auto-utility-1", "messages": MESSAGES}).json()
    assert answer["arm"] == "small"
    assert answer["fallbacks"] == ["large"]
    assert answer["arms"]["large"]["success_probability"] == 0.7
    assert answer["arms"]["large"]["difficulty"] == pytest.approx(0.3)
    assert [len(one.requests) for one in upstreams] == sent
    refused = client.post("/route", json={"model": "auto", "messages": []})
    assert refused.status_code == 400
    assert refused.json()["error"]["type"] == "invalid_request_error"
    assert "x-request-id" in refused.headers


def test_models_lists_auto_and_arms(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    assert [entry["id"] for entry in client.get("/v1/models").json()["data"]] == ["auto", "small", "large"]
    assert client.get("/v1/models/small").json()["id"] == "small"
    assert client.get("/v1/models/other").status_code == 404
