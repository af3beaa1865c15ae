"""The gateway against upstreams that misbehave, on real sockets. tests/test_gateway_vllm.py has the real ones."""

from collections.abc import Iterator

import httpx
import pytest

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.upstream import Upstream

DEEP = b'{"model":"auto","messages":[{"role":"user","content":"a"}],"x":' + b"[" * 300 + b"]" * 300 + b"}"


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


def test_unknown_paths_and_methods_answer_in_openais_form(pool: tuple[httpx.Client, list[Upstream]]) -> None:
    client, _ = pool
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    refused = client.get(PATH)
    assert refused.status_code == 405


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
