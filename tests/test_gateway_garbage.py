"""However a request ends, nothing of it stays: not until Python looks for garbage, for that is seldom."""

import http.client
import json
import logging
import socket
import time

import pytest

from server.chat_request import ChatRequest
from server.http.connection import Connection as ClientConnection
from server.upstream.connection import Connection as UpstreamConnection
from tests.support import upstream as faults
from tests.support.garbage import alive, no_collector
from tests.support.gateway_client import MESSAGES, PATH, gateway
from tests.support.processes import until
from tests.support.upstream import Handler

REQUESTS = 5
WATCHED = (ChatRequest, ClientConnection, UpstreamConnection)


def ask(host: str, port: int, body: str) -> None:
    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("POST", PATH, body)
    connection.getresponse().read()
    connection.close()


def ask_and_leave(host: str, port: int, body: str) -> None:
    with socket.create_connection((host, port)) as raw:
        raw.sendall(f"POST {PATH} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n{body}".encode())
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("handlers", "stream", "leaves", "total_s"),
    [
        pytest.param([faults.answers], False, False, 10, id="answered"),
        pytest.param([faults.fails_with(400)], False, False, 10, id="refused upstream"),
        pytest.param([faults.fails_with(429)], False, False, 10, id="failed"),
        pytest.param([faults.fails_with(429), faults.answers], False, False, 10, id="answered by another"),
        pytest.param([faults.hangs], False, False, 0.2, id="timed out"),
        pytest.param([faults.hangs], False, True, 10, id="left"),
        pytest.param([faults.drops_in_mid_stream], True, False, 10, id="failed in mid-stream"),
        pytest.param([faults.streams_on], True, True, 10, id="left in mid-stream"),
    ],
)
def test_a_request_leaves_nothing(
    handlers: list[Handler],
    stream: bool,
    leaves: bool,
    total_s: float,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL, "server")  # pytest would keep what is logged, and with it what failed
    body = json.dumps({"model": "auto", "messages": MESSAGES, "stream": stream})
    with no_collector(), gateway({"small": handlers}, limits={"total_s": total_s}) as (client, _):
        before = alive(*WATCHED)
        for _ in range(REQUESTS):
            (ask_and_leave if leaves else ask)(client.base_url.host, client.base_url.port or 80, body)
        until(lambda: alive(*WATCHED) == before, 5, "all that was asked is forgotten")
