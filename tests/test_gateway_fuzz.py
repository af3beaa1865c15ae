"""Whatever is sent as a chat request: answered or refused, never a server error, a silence, a traceback or growth."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offline.bench.gateway_rivals import nano
from offline.bench.servers import Server
from server.sections.policy import ROUTING_FIELDS
from tests.support.gateway_client import PATH
from tests.support.upstream import answers, running

# Lone surrogates too: JSON can spell them.
text = st.text(st.characters(exclude_categories=()), max_size=40)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=8,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(["text", "image_url"]) | values}, optional={"text": values})
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "assistant", "tool"]) | values},
    optional={"content": text | st.lists(parts, max_size=3) | values, "tool_calls": values, "name": values},
)
FIELDS = (
    "tools", "tool_choice", "n", "seed", "max_tokens", "max_completion_tokens", "temperature", "stop", "logprobs",
    "response_format", "stream_options", "user", "metadata",
)  # fmt: skip
bodies = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["auto", "nano-small", "auto-utility-0.3", "auto-cascade", "auto-"]) | values,
        "messages": st.lists(messages, min_size=1, max_size=4) | values,
    },
    optional={
        "stream": st.booleans() | values,
        "routing": st.dictionaries(st.sampled_from(ROUTING_FIELDS) | text, values, max_size=3) | values,
        **dict.fromkeys(FIELDS, values),
    },
)
ASKED = b'{"model":"auto","messages":[{"role":"user","content":"How much?"}]}'
GROWTH_MB = 20


@dataclass(frozen=True)
class Fuzzed:
    client: httpx.Client
    server: Server
    log: Path

    def send(self, body: bytes, headers: dict[str, bytes] | None = None) -> None:
        answer = self.client.post(PATH, content=body, headers=headers)
        assert answer.status_code < 500, answer.text
        assert answer.headers["x-request-id"]
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    def send_json(self, body: Any) -> None:
        self.send(json.dumps(body).encode())


def fuzz(examples: int, strategy: st.SearchStrategy[Any], send: Callable[[Any], None]) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(drawn: Any) -> None:
        send(drawn)

    one()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    """The gateway as a process, with the nano pool's probes."""
    scratch = tmp_path_factory.mktemp("gateway")
    with running(answers) as upstream, nano(upstream.port, scratch) as server:
        base_url = f"http://127.0.0.1:{server.port}"
        with httpx.Client(base_url=base_url, timeout=30, trust_env=False) as client:
            yield Fuzzed(client, server, scratch / "nano.log")


def test_chat_bodies(gateway: Fuzzed) -> None:
    fuzz(400, bodies, gateway.send_json)


def test_any_json(gateway: Fuzzed) -> None:
    fuzz(150, values, gateway.send_json)


def test_any_bytes(gateway: Fuzzed) -> None:
    fuzz(150, st.binary(), gateway.send)


def test_bytes_within_a_body(gateway: Fuzzed) -> None:
    cuts = st.tuples(st.integers(0, len(ASKED)), st.integers(0, len(ASKED)), st.binary(max_size=8))
    fuzz(150, cuts, lambda cut: gateway.send(ASKED[: cut[0]] + cut[2] + ASKED[cut[1] :]))


@pytest.mark.parametrize("depth", [500, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}")])
def test_deep_nesting(gateway: Fuzzed, depth: int, opening: bytes, closing: bytes) -> None:
    deep = opening * depth + b"1" + closing * depth
    gateway.send(deep)
    gateway.send(ASKED[:-1] + b',"metadata":' + deep + b"}")
    gateway.send(b'{"model":"auto","messages":' + deep + b"}")


def test_headers(gateway: Fuzzed) -> None:
    # What HTTP allows in a header's value.
    characters = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")
    value = st.text(characters, max_size=30).map(lambda text: text.strip().encode("latin-1"))
    names = (
        "x-request-id",
        "x-pika-debug",
        "x-pika-policy",
        "x-pika-lambda",
        "x-pika-arms",
        "traceparent",
        "content-type",
    )

    sent = st.dictionaries(st.sampled_from(names), value, max_size=4)
    fuzz(150, sent, lambda headers: gateway.send(ASKED, headers))


def test_it_has_not_grown_and_nothing_is_left(gateway: Fuzzed) -> None:
    fuzz(100, bodies, gateway.send_json)
    before, files = gateway.server.resident_mb(), gateway.server.open_files()
    fuzz(500, bodies, gateway.send_json)
    assert gateway.server.resident_mb() - before < GROWTH_MB
    assert gateway.server.open_files() <= files + 2
    lines = gateway.client.get("/metrics").text.splitlines()
    assert sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("pika_in_flight")) == 0
    assert "Traceback" not in gateway.log.read_text(errors="replace")
