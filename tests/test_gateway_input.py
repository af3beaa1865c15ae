"""Whatever a client sends: a clear answer, no 500, and the gateway serves on."""

import gzip
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import upstream as faults
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway
from tests.support.upstream import Upstream

Running = tuple[httpx.Client, list[Upstream]]
JSON = {"content-type": "application/json"}
BODY = json.dumps({"model": "auto", "messages": MESSAGES}).encode()


@pytest.fixture(scope="module")
def pool() -> Iterator[Running]:
    with gateway({"small": [faults.answers], "large": [faults.answers]}, limits={"body_s": 1}) as running:
        yield running


def wire(client: httpx.Client, *pieces: bytes) -> bytes:
    """All that comes back for these very bytes, until the gateway closes."""
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as raw:
        for piece in pieces:
            raw.sendall(piece)
        return raw.makefile("rb").read()


def request(body: bytes, *headers: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "host: gateway", *headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def length(body: bytes) -> str:
    return f"content-length: {len(body)}"


ODD = {
    "deep": b'{"model":"auto","messages":[{"role":"user","content":"a"}],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep with long numbers": b'{"model":"auto","x":1234567890123456789012,"y":' + b"[" * 99_999 + b"]" * 99_999 + b"}",
    "huge number": b'{"model":"auto","messages":[{"role":"user","content":"a"}],"seed":1e400}',
    "infinite number": b'{"model":"auto","messages":[{"role":"user"}],"seed":1234567890123456789012,"x":-1e999}',
    "endless number": b'{"model":"auto","messages":[{"role":"user","content":"a"}],"seed":' + b"9" * 10_000 + b"}",
    "no number": b'{"model":"auto","messages":[{"role":"user"}],"seed":1234567890123456789012,"x":NaN}',
    "invalid UTF-8": b'{"model":"auto","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "invalid UTF-8 with long numbers": b'{"model":"auto","seed":1234567890123456789012,"x":"\xff"}',
    "UTF-16": '{"model":"auto","seed":1234567890123456789012}'.encode("utf-16"),
    "lone surrogate": b'{"model":"auto","messages":[{"role":"user","content":"\\ud800"}]}',
    "lone surrogate with long numbers": b'{"model":"auto","x":1234567890123456789012,"y":"\\ud800"}',
    "two values": BODY + BODY,
    "nothing": b"",
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
def test_odd_json_is_a_400(pool: Running, body: bytes) -> None:
    client, _ = pool
    answer = client.post(PATH, content=body, headers=JSON)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("deep with long numbers", "nested too deeply"),
        ("endless number", "thousands of digits"),
        ("invalid UTF-8", "it is not UTF-8"),
        ("invalid UTF-8 with long numbers", "it is not UTF-8"),
        ("lone surrogate", "half a surrogate pair"),
        ("lone surrogate with long numbers", "half a surrogate pair"),
    ],
)
def test_what_is_wrong_with_odd_json_is_said_in_words(pool: Running, name: str, said: str) -> None:
    message = pool[0].post(PATH, content=ODD[name], headers=JSON).json()["error"]["message"]
    assert said in message
    assert "Python" not in message
    assert "sys." not in message


def test_nul_and_repeated_keys_pass(pool: Running) -> None:
    client, upstreams = pool
    body = b'{"model":"small","model":"large","messages":[{"role":"user","content":"a\\u0000b"}]}'
    assert client.post(PATH, content=body, headers=JSON).status_code == 200
    assert upstreams[1].requests[-1].body["messages"][0]["content"] == "a\0b"


@pytest.mark.parametrize(
    "headers",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 5"),
        ("content-length: 5", "content-length: 6"),
        ("content-length: five",),
        ("content-length: -1",),
        ("content-length: +5",),
        ("content-length: 5, 5",),
        ("content-length: 99999999999999999999999",),
        ("transfer-encoding: chunked, identity",),
        ("transfer-encoding: xchunked",),
        ("content-length : 5",),
        ("x: a\nb: c",),
        ("x: a\0b",),
    ],
)
def test_ambiguous_framing_reaches_nobody(pool: Running, headers: tuple[str, ...]) -> None:
    client, upstreams = pool
    before = sum(len(one.requests) for one in upstreams)
    answer = wire(client, request(b"0\r\n\r\n" + request(BODY, length(BODY)), *headers))
    assert answer.startswith(b"HTTP/1.1 4")
    assert answer.count(b"HTTP/1.1 ") == 1
    assert sum(len(one.requests) for one in upstreams) == before


def test_pipelined_requests_are_answered_in_order(pool: Running) -> None:
    client, _ = pool
    both = request(BODY, length(BODY), "x-request-id: one")
    both += request(BODY, length(BODY), "x-request-id: two", "connection: close")
    answer = wire(client, both)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert answer.index(b"x-request-id: one") < answer.index(b"x-request-id: two")


def test_a_body_in_single_bytes_is_read(pool: Running) -> None:
    client, _ = pool
    head = request(b"", length(BODY), "connection: close")
    assert b"200 OK" in wire(client, head, *(BODY[i : i + 1] for i in range(len(BODY))))


def test_a_head_that_does_not_end_reaches_nobody(pool: Running) -> None:
    client, upstreams = pool
    before = sum(len(one.requests) for one in upstreams)
    with socket.create_connection((client.base_url.host, client.base_url.port or 80), timeout=10) as raw:
        raw.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nx: ")
        assert chat(client).status_code == 200
    assert sum(len(one.requests) for one in upstreams) == before + 1


@pytest.mark.parametrize(
    "value", [b"a b", b"x" * 129, b"\xc3\xa9", b"a;b", b"", b"a\tset-cookie: b=1"], ids=lambda value: str(value[:20])
)
def test_a_request_id_that_is_no_token_is_not_echoed(pool: Running, value: bytes) -> None:
    client, _ = pool
    answer = client.post(PATH, content=BODY, headers=[(b"x-request-id", value), (b"content-type", b"application/json")])
    assert answer.status_code == 200
    assert len(answer.headers["x-request-id"]) == 32
    assert "set-cookie" not in answer.headers


def test_knobs_that_hold_line_breaks_are_errors(pool: Running) -> None:
    client, _ = pool
    for routing in ({"policy": "utility\r\nset-cookie: a=b"}, {"variant": "x\r\ny: z"}, {"arms": ["small\r\n"]}):
        answer = chat(client, routing=routing)
        assert answer.status_code == 400
        assert "set-cookie" not in answer.headers
    model = chat(client, model="auto-utility\r\nx: y")
    assert model.status_code == 400


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    [
        *("model", "messages", "stream", "stream_options", "tools", "max_tokens", "max_completion_tokens"),
        *("temperature", "routing", "n", "seed", "logprobs"),
    ]
)
ROLES = st.fixed_dictionaries({"role": st.text(max_size=9) | st.just("user")}, optional={"content": JSON_VALUES})
BODIES = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["auto", "small", "auto-utility-1", "auto-min_success-0.9", "auto-"]) | JSON_VALUES,
        "messages": st.lists(ROLES, max_size=3) | JSON_VALUES,
    },
    optional={"routing": st.dictionaries(st.sampled_from(["policy", "lambda", "arms", "fallback"]), JSON_VALUES)},
).flatmap(lambda body: st.dictionaries(FIELDS, JSON_VALUES, max_size=3).map(lambda more: {**more, **body}))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=BODIES)
def test_no_chat_body_breaks_the_gateway(pool: Running, body: dict[str, Any]) -> None:
    client, _ = pool
    answer = client.post(PATH, content=json.dumps(body).encode(), headers=JSON)
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(body=st.binary(max_size=200) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_nothing_else_does(pool: Running, body: bytes) -> None:
    client, _ = pool
    for path in (PATH, "/v1/completions", "/v1/embeddings", "/score", "/route"):
        answer = client.post(path, content=body, headers=JSON)
        assert answer.status_code in (200, 400, 404), answer.text


def test_openapi_has_the_raw_routes(pool: Running) -> None:
    client, _ = pool
    schema = client.get("/openapi.json").json()
    chat_body = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert chat_body["required"] == ["model", "messages"]
    assert {"/v1/completions", "/v1/embeddings", "/score", "/route", "/health"} <= set(schema["paths"])
    assert "fallback" in chat_body["properties"]["routing"]["properties"]
    assert schema == client.get("/openapi.json").json()


def test_arrays_by_the_million_are_refused(pool: Running) -> None:
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}], "x": [' + b"[]," * 300_000 + b"[]]}"
    answer = pool[0].post(PATH, content=gzip.compress(body), headers={"content-encoding": "gzip"})
    assert answer.status_code == 400
    assert "opening brackets" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://shop.example", 403),
        ("http://localhost.shop.example:8000", 403),
        ("null", 403),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:8000", 200),
    ],
)
def test_pages_of_other_sites_may_not_ask(pool: Running, origin: str, status: int) -> None:
    """Without keys, that is what keeps a web page that somebody visits from this machine's models."""
    headers = {"origin": origin, "content-type": "text/plain"}
    assert pool[0].post(PATH, content=BODY, headers=headers).status_code == status


def test_only_the_configuration_says_who_is_asked_and_what_series_there_are(pool: Running) -> None:
    client, upstreams = pool
    with faults.running(faults.answers) as elsewhere:
        url, host = elsewhere.url, f"127.0.0.1:{elsewhere.port}"
        names = ("x-forwarded-host", "x-host", "x-original-url", "x-rewrite-url", "x-api-base", "via")
        headers = {"host": host, "forwarded": f"host={host}", "x-session-id": host, **dict.fromkeys(names, url)}
        fields = dict.fromkeys(("api_base", "base_url", "api_url", "url", "host", "endpoint", "proxy", "user"), url)
        body = {"model": "large", "messages": MESSAGES, "prompt": "hi", **fields}
        for path in (PATH, "/v1/completions", "/v1/embeddings"):
            for target in (path, f"http://{host}{path}"):
                before = len(upstreams[1].requests)
                answer = client.post(path, json=body, headers=headers, extensions={"target": target.encode()})
                assert answer.status_code == 200, answer.text
                [asked] = upstreams[1].requests[before:]
                assert (asked.path, asked.headers["host"]) == (path, f"127.0.0.1:{upstreams[1].port}")

        before = sum(len(one.requests) for one in upstreams)
        for prefix in ("", "auto-", "auto-utility-", "large@", 'large",code="200"} 1\n'):
            name = prefix + url
            assert chat(client, headers, model=name).status_code in (400, 404)
            assert chat(client, headers, routing={"policy": name}).status_code == 400
            assert chat(client, headers, routing={"arms": [name]}).status_code == 400
        assert chat(client, {"x-pika-policy": url}).status_code == 400
        assert chat(client, {"x-pika-api-base": url}).status_code == 400
        assert sum(len(one.requests) for one in upstreams) == before
        assert not elsewhere.requests
    assert host not in client.get("/metrics").text
