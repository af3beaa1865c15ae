"""What a client may send, and how long it may take over it, on raw sockets: nothing hangs, and nobody else waits."""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from server.gateway import allow_many_files
from server.http.connection import LINGER_S
from tests.support import upstream as faults
from tests.support.broken_http import answers_with
from tests.support.gateway import write_pool
from tests.support.gateway_client import MESSAGES, PATH, metric
from tests.support.gateway_client import gateway as running_gateway
from tests.support.serve import Served, served

LIMITS = {"head_kb": 8, "head_s": 0.5, "body_mb": 0.5, "body_s": 0.5, "connections": 1100}
HEALTH = b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with faults.running(faults.streams_a_while) as upstream:
        file = write_pool(tmp_path_factory.mktemp("pool"), {"small": [upstream.url]}, limits=LIMITS)
        with served(file) as gateway:
            yield gateway
            assert gateway.client.get("/health").status_code == 200, "it still answers when all of this is over"


def connect(gateway: Served) -> socket.socket:
    return connect_to(gateway.client.base_url)


def connect_to(url: httpx.URL) -> socket.socket:
    return socket.create_connection((url.host, url.port or 0), timeout=20)


def read_all(sock: socket.socket) -> bytes:
    """To the end of the connection."""
    data = bytearray()
    while piece := sock.recv(65536):
        data += piece
    return bytes(data)


def read_one(sock: socket.socket) -> bytes:
    """One answer that says its length, on a connection that stays open."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += sock.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += sock.recv(65536)
    return head + b"\r\n\r\n" + body


def exchange(gateway: Served, sent: bytes) -> bytes:
    with connect(gateway) as sock:
        sock.sendall(sent)
        return read_all(sock)


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def post(body: bytes, *headers: str) -> bytes:
    lines = [f"POST {PATH} HTTP/1.1", "host: a", "content-type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chat(stream: bool = False) -> bytes:
    body = json.dumps({"model": "auto", "messages": MESSAGES, "stream": stream}).encode()
    return post(body, f"content-length: {len(body)}")


def test_a_refusal_is_json_and_ends_the_connection(gateway: Served) -> None:
    answer = exchange(gateway, b"\x16\x03\x01\x00 this is no HTTP\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status(answer) == 400
    assert b"connection: close" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "sent",
    [b"GET /health HTTP/1.1\r\nhost:", b"G", b"GET /health HTTP/1.1\r\nhost: a\r\nx-slow: 1\r\n"],
)
def test_a_head_that_does_not_come_is_not_waited_for(gateway: Served, sent: bytes) -> None:
    assert status(exchange(gateway, sent)) == 408


def test_a_head_that_drips_has_no_more_time(gateway: Served) -> None:
    with connect(gateway) as sock:
        sock.settimeout(0.1)
        answer = b""
        for byte in b"GET /health HTTP/1.1\r\nx-slow: " + b"1" * 300:
            try:
                sock.sendall(bytes([byte]))
                answer = sock.recv(65536)
                break
            except TimeoutError:
                continue
        assert status(answer) == 408


@pytest.mark.parametrize(
    "head",
    [
        b"x-large: " + b"x" * 20_000 + b"\r\n",
        b"x-large: " + b"x" * 2_000_000,
        b"".join(b"x-%d: 1\r\n" % i for i in range(200)),
        b"x: 1\r\n" * 50_000 + b"x: 1",
        b"".join(b"x-%d: %b\r\n" % (i, b"x" * 200) for i in range(60)),
    ],
    ids=["large", "endless", "many", "many-and-no-end", "all-together"],
)
def test_a_head_that_is_too_large(gateway: Served, head: bytes) -> None:
    with connect(gateway) as sock:
        try:
            sock.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n" + head + b"\r\n")
            answer = read_all(sock)
        except ConnectionError:  # it was closed while we still sent
            return
        assert status(answer) == 431


def test_a_head_that_is_too_large_in_all(gateway: Served) -> None:
    before = metric(gateway.client, 'pika_refused_total{code="431"}')
    with connect(gateway) as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nx: " + b"x" * 6_000)
        assert gateway.client.get("/health").status_code == 200  # by now that has been read
        sock.sendall(b"x" * 6_000 + b"\r\n\r\n")
        assert status(read_all(sock)) == 431
    assert metric(gateway.client, 'pika_refused_total{code="431"}') == before + 1


def test_a_long_path_is_a_head_too(gateway: Served) -> None:
    assert status(exchange(gateway, b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n")) == 431


def test_a_body_that_stalls_is_not_waited_for(gateway: Served) -> None:
    assert status(exchange(gateway, post(b'{"model": "auto", ', "content-length: 500"))) == 408


@pytest.mark.parametrize("chunked", [False, True])
def test_too_large_a_body_is_refused_and_its_rest_passed_over(gateway: Served, chunked: bool) -> None:
    chunk = b"%x\r\n%b\r\n" % (100_000, b" " * 100_000)
    framed = (chunk * 6 + b"0\r\n\r\n", "transfer-encoding: chunked")
    sent = framed if chunked else (b" " * 600_000, "content-length: 600000")
    with connect(gateway) as sock:
        sock.sendall(post(*sent))
        assert status(read_one(sock)) == 413
        sock.sendall(HEALTH)
        assert status(read_one(sock)) == 200


@pytest.mark.parametrize(
    "beside",
    [b"0\r\nx: " + b"x" * 600_000, b"0\r\n" + b"x: 1\r\n" * 100_000, b"1;x=" + b"x" * 600_000],
    ids=["trailer", "trailers", "chunk extension"],
)
def test_what_stands_beside_a_body_is_bounded_as_a_head_is(gateway: Served, beside: bytes) -> None:
    assert status(exchange(gateway, post(b"1\r\n{\r\n" + beside, "transfer-encoding: chunked"))) == 431


def test_an_endless_body_ends(gateway: Served) -> None:
    def send(sock: socket.socket) -> None:
        sock.sendall(post(b"", "transfer-encoding: chunked"))
        for _ in range(1000):
            sock.sendall(b"%x\r\n%b\r\n" % (100_000, b" " * 100_000))

    with connect(gateway) as sock, pytest.raises(ConnectionError):
        send(sock)


@pytest.mark.parametrize(
    "headers",
    [
        ("content-length: 5", "transfer-encoding: chunked"),
        ("transfer-encoding: chunked", "content-length: 5"),
        ("content-length: 5", "content-length: 6"),
        ("transfer-encoding: gzip", "content-length: 5"),
        ("transfer-encoding: xchunked",),
        ("transfer-encoding: gzip, chunked",),
        ("transfer-encoding: ,chunked",),
        ("transfer-encoding: identity", "transfer-encoding: chunked"),
        ("content-length: +5",),
        ("content-length: 5, 5",),
        ("content-length : 5",),
    ],
)
def test_framing_that_two_servers_may_read_differently(gateway: Served, headers: tuple[str, ...]) -> None:
    """Request smuggling: what follows must not be read as a request of its own."""
    answer = exchange(gateway, post(b"0\r\n\r\n", *headers) + HEALTH)
    assert status(answer) == 400
    assert answer.count(b"HTTP/1.1 ") == 1


def test_requests_that_come_together_are_answered_in_order(gateway: Served) -> None:
    last = HEALTH.replace(b"host: a", b"host: a\r\nconnection: close")
    answer = exchange(gateway, chat() + HEALTH + chat(stream=True) + last)
    parts = answer.split(b"HTTP/1.1 200 OK")[1:]
    assert [b"chat.completion" in part for part in parts] == [True, False, False, False]
    assert [b"text/event-stream" in part for part in parts] == [False, False, True, False]
    assert parts[1].endswith(b'{"status":"ok"}')
    assert parts[3].endswith(b'{"status":"ok"}')


@pytest.mark.parametrize(
    "after", [b"\x00 garbage\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"x" * 20_000, b"GET / HTTP/1.1\r\n"]
)
def test_what_follows_a_stream_does_not_break_into_it(gateway: Served, after: bytes) -> None:
    answer = exchange(gateway, chat(stream=True) + after)
    assert status(answer) == 200
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.count(faults.CHUNK) == 30
    assert answer.endswith(b"0\r\n\r\n")


def test_trailers_are_no_headers(gateway: Served) -> None:
    body = json.dumps({"model": "none", "messages": MESSAGES}).encode()
    framed = b"%x\r\n%b\r\n0\r\nx-request-id: trailer\r\n\r\n" % (len(body), body)
    answer = exchange(gateway, post(framed, "transfer-encoding: chunked", "connection: close", "x-request-id: head"))
    assert b"x-request-id: head" in answer


def test_a_trailer_does_not_end_the_connection(gateway: Served) -> None:
    with connect(gateway) as sock:
        sock.sendall(post(b"2\r\n{}\r\n0\r\nconnection: close\r\n\r\n", "transfer-encoding: chunked"))
        assert status(read_one(sock)) == 400
        sock.sendall(HEALTH)
        assert status(read_one(sock)) == 200


def test_requests_by_the_thousand_do_not_pile_up(gateway: Served) -> None:
    answer = exchange(gateway, HEALTH * 10_000)
    assert 0 < answer.count(b"HTTP/1.1 200 OK") < 1000
    last = answer[answer.rindex(b"HTTP/1.1 ") :]
    assert b"\r\nconnection: close\r\n" in last
    assert last.endswith(b'{"status":"ok"}')


def test_a_head_that_we_leave_unread_is_not_slow(gateway: Served) -> None:
    with connect(gateway) as sock:
        sock.sendall(chat(stream=True) + HEALTH + HEALTH[:10])
        assert gateway.client.get("/health").status_code == 200  # by now that has been read
        sock.sendall(HEALTH[10:].replace(b"host: a", b"host: a\r\nconnection: close"))
        assert read_all(sock).count(b"HTTP/1.1 200 OK") == 3


LARGE = b'{"x": "' + b"x" * 30_000_000 + b'"}'
"""More than the kernel takes from us for a client that does not read."""


def test_who_reads_our_last_words_slowly_gets_them_whole() -> None:
    with running_gateway({"small": [answers_with(LARGE)]}) as (client, _), connect_to(client.base_url) as sock:
        sock.sendall(chat() + b"\x00 garbage")
        time.sleep(LINGER_S + 1)
        assert read_all(sock).endswith(LARGE[-1000:])


def test_who_reads_nothing_is_let_go() -> None:
    limits = {"total_s": 1}
    with running_gateway({"small": [answers_with(LARGE)]}, limits=limits) as (client, _):
        with connect_to(client.base_url) as sock:
            sock.sendall(chat() + HEALTH)
            sock.recv(1)
            time.sleep(3)
            assert len(read_all(sock)) < len(LARGE)
        assert client.get("/health").status_code == 200


def test_an_upgrade_is_not_made_and_the_connection_goes_on(gateway: Served) -> None:
    upgrade = HEALTH.replace(b"host: a", b"host: a\r\nconnection: upgrade\r\nupgrade: h2c")
    with connect(gateway) as sock:
        for sent in (upgrade, HEALTH):
            sock.sendall(sent)
            assert status(read_one(sock)) == 200


def test_a_thousand_idle_connections_keep_nobody_waiting(gateway: Served) -> None:
    allow_many_files()
    with ExitStack() as stack:
        idle = [stack.enter_context(connect(gateway)) for _ in range(1000)]
        assert gateway.client.get("/health").status_code == 200
        idle[-1].sendall(HEALTH)
        assert status(read_one(idle[-1])) == 200
        more = [stack.enter_context(connect(gateway)) for _ in range(100)]
        answer = read_all(more[-1])
        assert status(answer) == 503
        assert b"limits.connections" in answer
        assert b"\r\nretry-after: 1\r\n" in answer
