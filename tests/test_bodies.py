"""Bodies of requests in flight are bounded together, and count no longer than they are held."""

import gzip
import json
import socket
import threading
from contextlib import ExitStack

import httpx
import pytest

from server.errors import BodiesError
from server.http.bodies import Bodies, Held
from tests.support import upstream as faults
from tests.support.gateway_client import MESSAGES, PATH, chat, gateway, metric
from tests.support.processes import until

MB = 2**20
LIMITS = {"bodies_mb": 4, "body_mb": 3}


def test_what_is_held_is_counted_once_and_given_back() -> None:
    bodies = Bodies(1)
    one, other = Held(bodies), Held(bodies)
    one.grow(1000)
    assert bodies.held == 0, "small ones are not counted"
    for size in (MB // 4, MB // 2):
        one.grow(size)
    assert bodies.held == MB // 2
    with pytest.raises(BodiesError):
        other.grow(MB // 2 + 1)
    with pytest.raises(BodiesError):
        other.expect(MB // 2 + 1)
    one.release()
    one.release()
    other.grow(MB)
    assert bodies.held == MB


@pytest.mark.parametrize("way", ["plain", "chunked", "gzip"])
def test_more_than_there_is_room_for_is_refused_at_once_and_small_ones_are_not(way: str) -> None:
    large = {"model": "auto", "messages": [{"role": "user", "content": "x" * 3_000_000}]}
    raw = json.dumps(large).encode()

    def ask(client: httpx.Client) -> httpx.Response:
        if way == "gzip":
            return client.post(PATH, content=gzip.compress(raw), headers={"content-encoding": "gzip"})
        return client.post(PATH, content=raw if way == "plain" else iter([raw]))

    async def waits(request: faults.Request, to: faults.Connection) -> None:
        if len(request.raw) > MB:
            await to.upstream.go_on.wait()
        await faults.answers(request, to)

    with gateway({"small": [waits]}, limits=LIMITS) as (client, [upstream]):
        first = threading.Thread(target=lambda: codes.append(ask(client).status_code))
        codes: list[int] = []
        first.start()
        until(lambda: len(upstream.requests) == 1, 10, "the first is upstream")
        refused = ask(client)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert "limits.bodies_mb" in refused.json()["error"]["message"]
        assert chat(client).status_code == 200
        upstream.let_go_on()
        first.join(20)
        assert ask(client).status_code == 200
        assert codes == [200]


def test_a_stream_holds_its_body_until_it_begins() -> None:
    large = [{"role": "user", "content": "x" * 3_000_000}]
    with gateway({"small": [faults.stalls_in_mid_stream]}, limits=LIMITS) as (client, _), ExitStack() as stack:
        for _ in range(5):
            body = {"model": "auto", "messages": large, "stream": True}
            answer = stack.enter_context(client.stream("POST", PATH, json=body))
            assert next(answer.iter_raw()) == faults.CHUNK


def test_announced_bodies_take_no_room() -> None:
    head = f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n".encode()
    with gateway({"small": [faults.answers]}, limits=LIMITS) as (client, _), ExitStack() as stack:
        for _ in range(20):
            raw = stack.enter_context(socket.create_connection((client.base_url.host, client.base_url.port or 0)))
            raw.sendall(head)
        assert chat(client, messages=[{"role": "user", "content": "x" * 2_900_000}]).status_code == 200


def test_a_body_that_drips_has_no_more_time_and_is_told_once() -> None:
    with (
        gateway({"small": [faults.answers]}, limits={"body_s": 0.5}) as (client, _),
        socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=0.05) as raw,
    ):
        raw.sendall(f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n".encode())
        answer = b""
        for _ in range(200):
            try:
                raw.sendall(b" ")
                answer += raw.recv(65536)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"limits.body_s" in answer
        labels = 'arm="none",code="408",path="none",policy="none"'
        until(lambda: metric(client, f"pika_requests_total{{{labels}}}") == 1, 5, "it is counted")


@pytest.mark.parametrize(
    ("part", "times", "said"),
    [
        (b'"x":1,', 300_000, "texts and names"),
        (b'"x":[[]],', 150_000, "brackets"),
        (b'"x":[' + b"1," * 999 + b"1],", 1001, "values"),
    ],
    ids=["names", "arrays", "numbers"],
)
def test_fields_by_the_million_are_refused(part: bytes, times: int, said: str) -> None:
    many = part * times
    body = b'{"model":"auto",%b"messages":%b}' % (many, json.dumps(MESSAGES).encode())
    with gateway({"small": [faults.answers]}) as (client, _):
        answer = client.post(PATH, content=body)
        assert answer.status_code == 400
        assert said in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ['"x": 1, ', "[{x}, \\", "1,"])
def test_in_a_long_text_nothing_is_counted(text: str) -> None:
    with gateway({"small": [faults.answers]}) as (client, _):
        assert chat(client, messages=[{"role": "user", "content": text * (4_000_000 // len(text))}]).status_code == 200
