"""What conversations are told apart by: names that clients give them, whoever sends them, and how they begin."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from server.chat_request import ChatRequest, parse_chat
from server.http.head import RequestHead, read_head
from server.routing.session import conversation_of
from tests.support.gateway_client import PATH, chat
from tests.support.keys import new_key
from tests.support.processes import until
from tests.test_session import CHEAPEST, sticky, told, turns


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with sticky() as client:
        yield client


@pytest.mark.parametrize(
    "name",
    [b"x" * 30_000, b"\x01\x02\x7f", b"\xff\xfe", b"'; DROP TABLE sessions; --", b"a\tb", b'{}\\"</script>'],
)
def test_hostile_session_ids(name: bytes, client: httpx.Client) -> None:
    for n, words in ((0, CHEAPEST), (1, {})):
        body = orjson.dumps({"model": "auto", "messages": turns(f"{name!r}"[:40], 0), **words})
        answer = _raw(client, name, body)
        if b" 400 " in answer.partition(b"\r\n")[0]:
            return  # no header may hold it
        assert b" 200 " in answer.partition(b"\r\n")[0]
        assert (b"x-pika-path: sticky" in answer) == (n == 1)


def test_session_ids_that_are_too_long_are_refused(client: httpx.Client) -> None:
    assert b" 431 " in _raw(client, b"x" * 40_000, b"{}").partition(b"\r\n")[0]
    assert b" 200 " not in _raw(client, b"x" * 1_000_000, b"{}")
    assert told(chat(client))[1] == "routed"


def _raw(client: httpx.Client, name: bytes, body: bytes) -> bytes:
    """An answer to a request whose header httpx would not send."""
    head = b"POST %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-session-id: %b\r\ncontent-length: %d\r\n\r\n"
    answer = b""
    address = client.base_url.host, client.base_url.port or 80
    with suppress(ConnectionError), socket.create_connection(address, timeout=20) as sock:
        sock.sendall(head % (PATH.encode(), name, len(body)) + body)  # refused before all of it was read, it may break
        while data := sock.recv(65536):
            answer += data
    return answer


def _request(messages: list[dict[str, Any]], session: bytes | None = None) -> ChatRequest:
    head = RequestHead() if session is None else read_head([(b"x-session-id", session)])
    return parse_chat(orjson.dumps({"model": "auto", "messages": messages}), head)


def test_one_keys_session_ids_say_nothing_of_anothers() -> None:
    request = _request(turns("One?", 1), b"mine")
    assert len({conversation_of(request, name).key for name in (None, "a", "b")}) == 3
    beginning = _request(turns("One?", 1))
    assert conversation_of(beginning, "a").key != conversation_of(beginning, "b").key
    crafted = _request(turns("One?", 1), b"id id mine")
    assert conversation_of(crafted, "a").key != conversation_of(request, "a id").key


def test_two_keys_with_one_session_id(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    one, other = ({**new_key(file, name), "x-session-id": "same"} for name in ("team-a", "team-b"))
    with sticky(keys={"file": str(file)}) as client:
        chat(client, one, **CHEAPEST)
        assert told(chat(client, one)) == ("small", "sticky")
        assert told(chat(client, other)) == ("large", "routed")
        assert told(chat(client, other)) == ("large", "sticky")
        assert told(chat(client, one)) == ("small", "sticky")
    with sticky(0.0, keys={"file": str(file)}) as client:
        narrow = {**new_key(file, "team-c", arms=["medium"]), "x-session-id": "same"}
        until(lambda: chat(client, narrow).status_code == 200, 10, "the new key is known")
        assert told(chat(client, narrow)) == ("medium", "sticky")


def test_how_a_conversation_begins_tells_it_from_others() -> None:
    long = "x" * 100_000
    beginnings = ["a", "b", "", long, long + "!", "!" + long, long[:-1]]
    assert len({conversation_of(_request(turns(text, 1)), None).key for text in beginnings}) == len(beginnings)
    assert len({conversation_of(_request(turns("a", n)), None).key for n in range(5)}) == 1
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]}]
    plain = [{"role": "user", "content": "a"}]
    assert conversation_of(_request(parts), None).key == conversation_of(_request(plain), None).key
