"""What is asked of the gateway itself, and what goes wrong before routing: counted, logged, and explained."""

import json
import re
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import MESSAGES, PATH, metric
from tests.support.processes import until
from tests.support.serve import Served, served


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with faults.running(faults.answers) as upstream:
        file = write_pool(tmp_path_factory.mktemp("pool"), {"small": [upstream.url]})
        with served(file, None, "--log-format", "json") as gateway:
            yield gateway


def wire(gateway: Served, sent: bytes) -> bytes:
    """All that comes back for these very bytes."""
    url = gateway.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as raw:
        raw.sendall(sent)
        return raw.makefile("rb").read()


def counted(gateway: Served, path: str, code: int) -> float:
    labels = f'arm="none",code="{code}",path="{path}",policy="none"'
    return metric(gateway.client, f"pika_requests_total{{{labels}}}")


def logged(gateway: Served, request_id: str) -> list[dict[str, object]]:
    return [line for line in map(json.loads, gateway.log) if line.get("request_id") == request_id]


CHAT = {"model": "auto", "messages": MESSAGES}


@pytest.mark.parametrize(
    ("method", "path", "body", "as_path", "code"),
    [
        ("POST", "/score", {"input": "hi"}, "score", 200),
        ("POST", "/score", {"put": "hi"}, "score", 400),
        ("POST", "/route", CHAT, "route", 200),
        ("POST", "/route", {}, "route", 400),
        ("GET", "/route", None, "route", 405),
        ("GET", "/nowhere", None, "none", 404),
        ("GET", PATH, None, "none", 405),
        ("GET", "/v1/models/nobody", None, "none", 404),
    ],
)
def test_what_no_arm_answers_is_counted_and_logged_once(
    gateway: Served, method: str, path: str, body: object, as_path: str, code: int
) -> None:
    before = counted(gateway, as_path, code)
    request_id = f"id-{method}{path.replace('/', '.')}-{code}"
    answer = gateway.client.request(method, path, json=body, headers={"x-request-id": request_id})
    assert (answer.status_code, answer.headers["x-request-id"]) == (code, request_id)
    assert counted(gateway, as_path, code) == before + 1
    until(lambda: logged(gateway, request_id), 5, "the line is written")
    [line] = logged(gateway, request_id)
    assert (line["message"], line["code"], line["path"]) == ("request", code, as_path)


def test_a_refusal_of_the_parser_is_counted_and_logged_too(gateway: Served) -> None:
    before = counted(gateway, "none", 400)
    answer = wire(gateway, b"GET / HTTP/1.1\r\nx-request-id: mine\r\nno header\r\n\r\n")
    found = re.search(rb"x-request-id: ([0-9a-f]{32})\r\n", answer)
    assert found is not None, answer
    assert counted(gateway, "none", 400) == before + 1
    until(lambda: logged(gateway, found[1].decode()), 5, "the line is written")


def test_health_checks_are_neither_counted_nor_logged(gateway: Served) -> None:
    for path in ("/health", "/ready", "/metrics", "/v1/models", "/openapi.json"):
        answer = gateway.client.get(path)
        assert answer.status_code == 200
        assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert 'path="health"' not in gateway.client.get("/metrics").text


@pytest.mark.parametrize(
    ("method", "path", "said"),
    [
        ("GET", PATH, "use POST"),
        ("POST", "/health", "use GET"),
        ("DELETE", "/v1/models/small", "use GET"),
        ("POST", "/v1/chat/completion", "did you mean POST /v1/chat/completions?"),
        ("POST", "/chat/completions", "did you mean POST /v1/chat/completions?"),
        ("POST", f"{PATH}/", "did you mean POST /v1/chat/completions?"),
        ("GET", "/health/", "did you mean GET /health?"),
        ("GET", "/docs", "GET /openapi.json lists all"),
    ],
)
def test_errors_name_the_fix(gateway: Served, method: str, path: str, said: str) -> None:
    answer = gateway.client.request(method, path, follow_redirects=False)
    assert answer.status_code in (404, 405)
    assert said in answer.json()["error"]["message"]
    if answer.status_code == 405:
        assert answer.headers["allow"] in said


@pytest.mark.parametrize("path", ["/v1/chat%2Fcompletions", "/%76%31/chat/completions", "/healt%68", "/%73core"])
def test_no_path_has_two_spellings(gateway: Served, path: str) -> None:
    """A proxy that lets some paths through and others not would be passed by."""
    for method in ("GET", "POST"):
        answer = wire(gateway, f"{method} {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("path", ["/health", "/ready", "/v1/models", "/metrics", "/v1/models/small", "/openapi.json"])
def test_head_is_get_without_its_body(gateway: Served, path: str) -> None:
    plain, head = gateway.client.get(path), gateway.client.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == plain.headers["content-type"]
    if path != "/metrics":
        assert head.headers["content-length"] == str(len(plain.content))
    assert gateway.client.head(PATH).status_code == 405


@pytest.mark.parametrize(
    ("sent", "code", "said"),
    [
        (b"GET /health HTTP/1.1\r\n\r\n", 400, b"host header"),
        (b"GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, b"host header"),
        (b"GET /health HTTP/1.0\r\n\r\n", 200, b"ok"),
        (b"GET /health HTTP/2.0\r\nhost: a\r\n\r\n", 505, b"ask by HTTP/1.1"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, b"Ask by HTTP/1.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, b"http:// instead of https://"),
        (b"GET /h\xc3\xa9alth HTTP/1.1\r\nhost: a\r\n\r\n", 400, b"url path"),
        (b"OPTIONS * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 404, b"'*' is no path here"),
        (b"CONNECT a:443 HTTP/1.1\r\nhost: a\r\n\r\n", 400, b"target"),
        (b"GET http://a/health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 200, b"ok"),
        (b"GET /health# HTTP/1.1\r\nhost: a\r\n\r\n", 400, b"fragment"),
        (b"BREW /health HTTP/1.1\r\nhost: a\r\n\r\n", 400, b"method"),
    ],
)
def test_what_is_not_spoken_here_is_told_what_is(gateway: Served, sent: bytes, code: int, said: bytes) -> None:
    answer = wire(gateway, sent)
    assert answer.startswith(b"HTTP/1.1 %d " % code)
    assert said in answer
    assert b"\r\nconnection: close\r\n" in answer


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_http_1_0_gets_no_chunks(gateway: Served, version: str) -> None:
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST {PATH} HTTP/{version}\r\nhost: a\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    answer = wire(gateway, head.encode() + body)
    got, _, events = answer.partition(b"\r\n\r\n")
    assert (b"transfer-encoding" in got) == (version == "1.1")
    assert events.startswith(faults.CHUNK if version == "1.0" else b"d7\r\n" + faults.CHUNK)
    assert events.endswith(b"data: [DONE]\n\n" if version == "1.0" else b"data: [DONE]\n\n\r\n0\r\n\r\n")


def test_a_body_after_the_wish_for_another_protocol_is_not_read_as_a_request(gateway: Served) -> None:
    """As `curl --http2` asks."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: h2c\r\ncontent-length: 40\r\n\r\n"
    answer = wire(gateway, head.encode() + b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n1234")
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"without the header upgrade" in answer
    assert answer.count(b"HTTP/1.1 ") == 1 + answer.count(b"valid HTTP/1.1 ")


def test_who_waits_for_our_word_gets_it(gateway: Served) -> None:
    body = json.dumps(CHAT).encode()
    url: httpx.URL = gateway.client.base_url
    with socket.create_connection((url.host, url.port or 0), timeout=10) as raw:
        head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\n"
        raw.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode())
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(body)
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 200 ")


def test_who_did_not_get_our_word_is_not_expected_to_go_on(gateway: Served) -> None:
    """Whether a body comes now nobody could tell, nor where the next request begins."""
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 99000000\r\n\r\n"
    answer = wire(gateway, head.encode())
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"\r\nconnection: close\r\n" in answer


def test_http_1_0_has_no_word_of_ours(gateway: Served) -> None:
    body = json.dumps(CHAT).encode()
    head = f"POST {PATH} HTTP/1.0\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n\r\n"
    assert wire(gateway, head.encode() + body).startswith(b"HTTP/1.1 200 ")
