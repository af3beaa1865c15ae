"""What reaches the upstream is what the client sent, and back."""

import gzip
import json
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support import upstream as faults
from tests.support.broken_http import answers_with, sends
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.upstream import Upstream

COMPLETIONS = "/v1/completions"
BODY = {"model": "auto", "messages": MESSAGES}
JSON = {"content-type": "application/json"}
Running = tuple[httpx.Client, list[Upstream]]


@pytest.fixture(scope="module")
def pool() -> Iterator[Running]:
    with gateway({"small": [faults.answers], "large": [faults.answers]}, limits={"body_mb": 1}) as running:
        yield running


def sent_raw(pool: Running, body: bytes) -> bytes:
    """The body as the upstream got it."""
    client, upstreams = pool
    answer = client.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 200, answer.text
    return upstreams[1].requests[-1].raw


def message(content: str) -> bytes:
    return b'{"model":"auto","messages":[{"role":"user","content":"a"}],%s}' % content.encode()


@pytest.mark.parametrize(
    "field",
    [
        '"seed":123456789012345678901234567890',
        '"seed":18446744073709551616,"temperature":0.1',
        '"seed":-9223372036854775809',
        '"user":"1234567890123456789012345"',
        '"x":[1.5,-0.25,1e300,true,null,"\\u00fc\\n\\u0000"]',
    ],
)
def test_numbers_and_texts_survive(pool: Running, field: str) -> None:
    body = message(field)
    assert json.loads(sent_raw(pool, body)) == {**json.loads(body), "model": "large"}


def test_the_order_of_fields_survives(pool: Running) -> None:
    assert sent_raw(pool, message('"z":1,"a":2')) == message('"z":1,"a":2').replace(b"auto", b"large")


def test_of_a_repeated_key_the_last_counts(pool: Running) -> None:
    assert json.loads(sent_raw(pool, message('"seed":1,"seed":2')))["seed"] == 2


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "deflate", "identity"])
def test_compressed_bodies_are_read(pool: Running, encoding: str) -> None:
    client, upstreams = pool
    squeeze = {"gzip": gzip.compress, "x-gzip": gzip.compress, "deflate": zlib.compress, "identity": bytes}[encoding]
    raw = json.dumps(BODY).encode()
    answer = client.post(PATH, content=squeeze(raw), headers={**JSON, "content-encoding": encoding})
    assert answer.content == faults.WHOLE
    sent = upstreams[1].requests[-1]
    assert sent.body == {**BODY, "model": "large"}
    assert "content-encoding" not in sent.headers


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("gzip, gzip", b"x", 415),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(b"{}")[:-6], 400),
        ("gzip", gzip.compress(b" " * 50_000_000), 413),
        ("deflate", zlib.compress(b" " * 50_000_000), 413),
    ],
    ids=["unknown", "twice", "broken", "cut", "gzip bomb", "deflate bomb"],
)
def test_what_cannot_be_decompressed_is_refused(pool: Running, encoding: str, body: bytes, status: int) -> None:
    client, _ = pool
    answer = client.post(PATH, content=body, headers={**JSON, "content-encoding": encoding})
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_chunked_and_large_bodies_pass(pool: Running) -> None:
    client, upstreams = pool
    body = {**BODY, "messages": [{"role": "user", "content": "0123456789" * 50_000}]}
    raw = json.dumps(body).encode()
    parts = (raw[i : i + 10_000] for i in range(0, len(raw), 10_000))
    assert client.post(PATH, content=parts, headers=JSON, params=None).status_code in (200, 400)
    pinned = json.dumps({**body, "model": "large"}).encode()
    parts = (pinned[i : i + 10_000] for i in range(0, len(pinned), 10_000))
    assert client.post(PATH, content=parts, headers=JSON).status_code == 200
    assert upstreams[1].requests[-1].body["messages"] == body["messages"]


def test_tracing_headers_pass(pool: Running) -> None:
    client, upstreams = pool
    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "tracestate": "a=1,b=2"}
    chat(client, trace)
    sent = upstreams[1].requests[-1].headers
    assert {name: sent[name] for name in trace} == trace


@pytest.mark.parametrize("prompt", ["How much is 1 + 1?", ["How much is 1 + 1?", "And 2 + 2?"]])
def test_completions_are_routed_by_policy(pool: Running, prompt: Any) -> None:
    client, upstreams = pool
    answer = client.post(COMPLETIONS, json={"model": "auto-utility-1", "prompt": prompt, "max_tokens": 5})
    assert (answer.status_code, answer.content) == (200, faults.WHOLE)
    assert (answer.headers["x-pika-arm"], answer.headers["x-pika-path"]) == ("small", "routed")
    sent = upstreams[0].requests[-1]
    assert (sent.path, sent.body) == (COMPLETIONS, {"model": "small", "prompt": prompt, "max_tokens": 5})


def test_completions_stream_like_chats(pool: Running) -> None:
    client, _ = pool
    answer = client.post(COMPLETIONS, json={"model": "auto", "prompt": "a", "stream": True})
    assert answer.content == faults.CHUNK * 3 + b"data: [DONE]\n\n"


def test_token_ids_need_an_arm(pool: Running) -> None:
    client, upstreams = pool
    for prompt in ([1, 2, 3], [[1], [2]], None, [], [1, "a"]):
        refused = client.post(COMPLETIONS, json={"model": "auto", "prompt": prompt})
        assert refused.status_code == 400
        assert "name an arm" in refused.json()["error"]["message"]
    for fallback in (False, True):
        body = {"model": "large", "prompt": [1, 2, 3], "routing": {"fallback": fallback}}
        assert client.post(COMPLETIONS, json=body).status_code == 200
        assert upstreams[1].requests[-1].body == {"model": "large", "prompt": [1, 2, 3]}


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/responses", "/v1/messages", "/tokenize", "/v1/rerank"])
def test_other_endpoints_serve_pinned_arms(pool: Running, path: str) -> None:
    client, upstreams = pool
    body = {"model": "large", "input": ["a", {"b": None}], "temperature": None}
    answer = client.post(path, json=body)
    assert (answer.status_code, answer.content) == (200, faults.WHOLE)
    assert (answer.headers["x-pika-arm"], answer.headers["x-pika-path"]) == ("large", "pinned")
    sent = upstreams[1].requests[-1]
    assert (sent.path, sent.body) == (path, body)
    refused = client.post(path, json={**body, "model": "auto"})
    assert refused.status_code == 404
    assert "is not routed" in refused.json()["error"]["message"]


def test_other_endpoints_stream_untouched() -> None:
    stream = b'event: a\ndata: {"choices":[],"usage":{"input_tokens":3}}\n\ndata: [DONE]\n\n'
    handler = faults.EVENTS + faults.chunk(stream) + b"0\r\n\r\n"

    async def streams(_: faults.Request, to: faults.Connection) -> None:
        await to.send(handler)

    with gateway({"small": [streams]}) as (client, upstreams):
        body = {"model": "small", "input": "a", "stream": True}
        assert client.post("/v1/responses", json=body).content == stream
        assert upstreams[0].requests[-1].body == body


def test_what_describes_only_the_way_to_the_gateway_stays_there(pool: Running) -> None:
    client, upstreams = pool
    headers = {"content-type": "text/plain", "accept-encoding": "gzip", "x-pika-debug": "1", "cookie": "a=b"}
    body = gzip.compress(json.dumps(BODY).encode())
    query = "?api-version=1"
    assert client.post(PATH + query, content=body, headers={**headers, "content-encoding": "gzip"}).status_code == 200
    sent = upstreams[1].requests[-1]
    assert sent.path == PATH
    assert (sent.headers["content-type"], sent.headers["accept-encoding"]) == ("application/json", "identity")
    assert sent.headers["cookie"] == "a=b"
    assert not {"x-pika-debug", "content-encoding"} & set(sent.headers)


def test_usage_of_other_endpoints_is_counted() -> None:
    handler = answers_with(b'{"usage":{"input_tokens":30,"output_tokens":4}}')
    with gateway({"small": [handler]}) as (client, _):
        assert client.post("/v1/responses", json={"model": "small", "input": "a"}).status_code == 200
        assert metric(client, 'pika_tokens_total{arm="small",kind="input"}') == 30
        assert metric(client, 'pika_tokens_total{arm="small",kind="output"}') == 4


def test_forms_pass_with_their_model_replaced() -> None:
    with gateway({"small": [faults.answers]}) as (client, upstreams):
        sound = bytes(range(256)) * 100
        form = {"data": {"language": "en", "model": "small"}, "files": {"file": ("a.wav", sound)}}
        answer = client.post("/v1/audio/transcriptions", **form)
        assert answer.status_code == 200, answer.text
        sent = upstreams[0].requests[-1]
        assert sent.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert sound in sent.raw
        assert b"\r\n\r\nsmall\r\n" in sent.raw
        form["data"] = {"language": "en"}
        assert client.post("/v1/audio/transcriptions", **form).status_code == 400


@pytest.mark.parametrize("second", [b"small", b"other", b"", b"x" * 300])
def test_a_form_that_names_two_models_is_refused(pool: Running, second: bytes) -> None:
    """The gateway might go by one of them, and vLLM by the other."""
    part = b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\n%b\r\n'
    headers = {"content-type": "multipart/form-data; boundary=b"}
    body = part % b"small" + part % second + b"--b--\r\n"
    answer = pool[0].post("/v1/audio/transcriptions", content=body, headers=headers)
    assert answer.status_code == 400
    assert "twice" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "part",
    [b"--b\r\n", b"--b\r\ncontent-disposition: " + b"name=model;" * 150 + b"\r\n\r\n"],
    ids=["empty", "repeating itself"],
)
def test_fields_of_a_form_by_the_thousand_are_refused(pool: Running, part: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    answer = pool[0].post("/v1/audio/transcriptions", content=part * (500_000 // len(part)), headers=headers)
    assert answer.status_code == 400
    assert "more than 100 fields" in answer.json()["error"]["message"]


def test_an_answer_without_content_has_no_length() -> None:
    with gateway({"small": [sends(b"HTTP/1.1 204 No Content\r\n\r\n")]}) as (client, _):
        for _ in range(2):
            answer = chat(client)
            assert (answer.status_code, answer.content) == (204, b"")
            assert "content-length" not in answer.headers


@pytest.mark.parametrize("after", [b"rubbish", gzip.compress(b" ")], ids=["rubbish", "another member"])
def test_what_follows_a_compressed_body_is_refused(pool: Running, after: bytes) -> None:
    body = gzip.compress(json.dumps({"model": "auto", "messages": MESSAGES}).encode()) + after
    answer = pool[0].post(PATH, content=body, headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert "as one piece" in answer.json()["error"]["message"]


def test_what_loads_adapters_is_out_of_reach(pool: Running) -> None:
    client, _ = pool
    for path in ("/v1/load_lora_adapter", "/v1/../sleep", "/sleep", "/v1/http://evil.example/"):
        assert client.post(path, json={"model": "large"}).status_code == 404
