"""SIGTERM: nothing new comes in, what is open ends as it should or, when time is up, with an error that says why."""

import json
import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest

from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import MESSAGES, PATH
from tests.support.processes import until
from tests.support.serve import Served, served

STREAM = {"model": "auto", "messages": MESSAGES, "stream": True}
WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


def pool(folder: Path, upstream: faults.Upstream, drain_s: float = 30) -> Path:
    return write_pool(folder, {"small": [upstream.url]}, server={"drain_s": drain_s})


def connect(gateway: Served) -> socket.socket:
    url = gateway.client.base_url
    return socket.create_connection((url.host, url.port or 0), timeout=20)


def refuses(gateway: Served) -> bool:
    try:
        connect(gateway).close()
    except ConnectionRefusedError:
        return True
    return False


@WORKERS
def test_open_streams_end_whole_and_nothing_new_comes_in(tmp_path: Path, workers: str) -> None:
    with faults.running(faults.streams_a_while) as upstream:
        with served(pool(tmp_path, upstream), None, "--workers", workers) as gateway, connect(gateway) as idle:
            idle.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
            assert idle.recv(65536).startswith(b"HTTP/1.1 200")
            with gateway.client.stream("POST", PATH, json=STREAM) as stream:
                gateway.process.send_signal(signal.SIGTERM)
                until(lambda: refuses(gateway), 10, "it listens no more")
                whole = b"".join(stream.iter_raw())
            while idle.recv(65536):
                pass  # the rest of the answer, then the end: an idle connection is closed
            assert whole.count(faults.CHUNK) == 30
            assert whole.endswith(b"data: [DONE]\n\n")
            assert gateway.process.wait(20) == 0
        assert "drained" in "".join(gateway.log)


def test_a_request_on_its_way_is_answered_and_ready_says_why_no_more_should_come(tmp_path: Path) -> None:
    with faults.running(faults.streams_a_while) as upstream, served(pool(tmp_path, upstream)) as gateway:
        with gateway.client.stream("POST", PATH, json=STREAM) as stream, connect(gateway) as sock:
            sock.sendall(b"GET /ready HTTP/1.1\r\n")
            assert gateway.client.get("/health").status_code == 200  # by now it has been read
            gateway.process.send_signal(signal.SIGTERM)
            until(lambda: refuses(gateway), 10, "it listens no more")
            sock.sendall(b"host: a\r\n\r\n")
            answer = b""
            while piece := sock.recv(65536):
                answer += piece
            stream.read()
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert b"connection: close" in head
        said = json.loads(body)
        assert (said["ready"], said["draining"]) == (False, True)
        assert [problem["part"] for problem in said["problems"]] == ["gateway"]


@WORKERS
def test_what_takes_too_long_is_told_so(tmp_path: Path, workers: str) -> None:
    async def handler(request: faults.Request, to: faults.Connection) -> None:
        await (faults.streams_on if request.body.get("stream") else faults.hangs)(request, to)

    with (
        faults.running(handler) as upstream,
        served(pool(tmp_path, upstream, drain_s=0.5), None, "--workers", workers) as gateway,
    ):
        whole: list[httpx.Response] = []
        body = {"model": "auto", "messages": MESSAGES}
        asking = threading.Thread(target=lambda: whole.append(gateway.client.post(PATH, json=body)))
        asking.start()
        until(lambda: len(upstream.requests) == 1, 10, "the request is upstream")
        with gateway.client.stream("POST", PATH, json=STREAM) as stream:
            chunks = stream.iter_raw()
            next(chunks)
            gateway.process.send_signal(signal.SIGTERM)
            rest = b"".join(chunks)
        asking.join(20)
        assert b'"code":"draining"' in rest.rpartition(b"data: ")[2]
        assert whole[0].status_code == 503
        assert whole[0].json()["error"]["code"] == "draining"
        assert gateway.process.wait(20) == 0


@WORKERS
def test_a_second_signal_ends_it_at_once(tmp_path: Path, workers: str) -> None:
    with (
        faults.running(faults.streams_on) as upstream,
        served(pool(tmp_path, upstream), None, "--workers", workers) as gateway,
        gateway.client.stream("POST", PATH, json=STREAM) as stream,
    ):
        chunks = stream.iter_raw()
        next(chunks)
        gateway.process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in "".join(gateway.log), 10, "it drains")
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(10) == 128 + signal.SIGINT
        with pytest.raises(httpx.RemoteProtocolError):
            list(chunks)
