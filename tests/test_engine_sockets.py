"""Gateways and an engine at a socket: who may join, whose answer is whose, and what a broken neighbour costs."""

import asyncio
import stat
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import anyio.to_thread
import numpy as np
import pytest

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.engine import client as client_module
from probes.engine import server as server_module
from probes.engine.address import bind, check_url
from probes.engine.base import EngineOptions, EngineUnavailableError, Prompt
from probes.engine.client import SocketEngine
from probes.engine.local import LocalEngine
from probes.engine.served import served_sha256
from probes.engine.wire import LOOKUPS, Kind, Report, encode_prompts, proof
from tests.support.engines import Held, listening, soon, text, text_artifact
from tests.support.garbage import alive, no_collector
from tests.support.processes import until

pytestmark = pytest.mark.anyio
HEADER = struct.Struct("<IBI")


@pytest.fixture
def artifacts(tmp_path: Path) -> list[Artifact]:
    return [text_artifact(tmp_path / "a"), text_artifact(tmp_path / "b", -1.0)]


@asynccontextmanager
async def joined(
    url: str, artifacts: Sequence[Artifact], secret: bytes = b"", reports: list[Report] | None = None
) -> AsyncIterator[SocketEngine]:
    engine = SocketEngine(url, artifacts, secret=secret, on_report=[].append if reports is None else reports.append)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
async def url(tmp_path: Path) -> str:
    return f"unix://{tmp_path}/engine.sock"


@pytest.mark.parametrize("over", ["unix", "tcp"])
async def test_gateways_share_an_engine_and_each_gets_its_own_answers(
    over: str, artifacts: list[Artifact], url: str, tmp_path: Path
) -> None:
    url = url if over == "unix" else "tcp://127.0.0.1:0"
    reports: list[Report] = []
    held = Held(artifacts)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(listening(url, held, b"secret"))
        if over == "unix":
            assert stat.S_IMODE((tmp_path / "engine.sock").stat().st_mode) == 0o600
        else:
            assert server._server is not None
            url = f"tcp://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
        gateways = [await stack.enter_async_context(joined(url, artifacts, b"secret", reports)) for _ in range(3)]
        prompts = [[text(n), text(n + i)] for n in range(30) for i in range(3)]
        calls = [gateways[i % 3].score(pair, soon()) for i, pair in enumerate(prompts)]
        answers = await asyncio.gather(*calls)
        local = LocalEngine(artifacts)
        for pair, answer in zip(prompts, answers, strict=True):
            np.testing.assert_array_equal(answer.success, local.score(pair).success)
        assert (await gateways[0].score([], soon())).success.shape == (0, 2)
        await asyncio.sleep(1.5 * server_module.REPORT_S)
    # Each prompt and micro-batch is told to one of them.
    lookups = dict(zip(LOOKUPS, np.sum([report.lookups for report in reports], axis=0), strict=True))
    assert sum(lookups.values()) == 2 * len(prompts)
    assert lookups["miss"] == 32 == sum(batch.prompts for report in reports for batch in report.batches)
    assert not any(gateway.ready for gateway in gateways)


async def test_who_does_not_know_the_secret_or_serves_other_probes_is_refused(
    artifacts: list[Artifact], url: str
) -> None:
    async with listening(url, Held(artifacts), b"secret") as server:
        with pytest.raises(ProbeError, match="refuses this gateway: the secret is not the engine's"):
            await SocketEngine(url, artifacts, secret=b"guess").start()
        for others in (artifacts[:1], artifacts[::-1]):
            with pytest.raises(ProbeError, match="the engine serves other probes: give it and the gateway the same"):
                await SocketEngine(url, others, secret=b"secret").start()
        await asyncio.sleep(0.05)
        assert not server.connections


async def test_an_engine_that_comes_later_or_again_is_joined(artifacts: list[Artifact], url: str) -> None:
    async with joined(url, artifacts) as gateway:
        assert not gateway.ready
        with pytest.raises(EngineUnavailableError, match="is not there; it is being restarted, or joined again"):
            await gateway.score([text(1)], soon())
        for _ in range(2):
            held = Held(artifacts)
            async with listening(url, held):
                await anyio.to_thread.run_sync(until, lambda: gateway.ready, 10, "the engine is joined")
                assert (await gateway.score([text(1)], soon())).success.shape == (1, 2)
                held.go.clear()
                waiting = asyncio.create_task(gateway.score([text(2)], soon()))
                await asyncio.sleep(0.05)
            with pytest.raises(EngineUnavailableError, match=r"is not there|closed"):
                await waiting


async def test_who_is_refused_leaves_nothing(artifacts: list[Artifact], url: str) -> None:
    """Not until Python looks for garbage: of a saturated engine's gateway that was 15 ms every second."""
    async with listening(url, Held(artifacts), options=EngineOptions(queue_prompts=1)), joined(url, artifacts) as one:
        with no_collector():
            for _ in range(3):
                with pytest.raises(EngineUnavailableError, match="than the engine's queue ever holds"):
                    await one.score([text(1), text(2)], soon())
            await asyncio.sleep(0.05)
            assert not alive(EngineUnavailableError)


async def test_prompts_of_who_gives_up_or_goes_are_taken_out(artifacts: list[Artifact], url: str) -> None:
    held = Held(artifacts)
    async with listening(url, held), joined(url, artifacts) as one, joined(url, artifacts) as other:
        held.computed.clear()
        held.go.clear()
        first = asyncio.create_task(one.score([text(1)], soon()))
        await asyncio.sleep(0.05)
        cancelled = asyncio.create_task(one.score([text(2)], soon()))
        late = asyncio.create_task(one.score([text(3)], soon(0.1)))
        lost = asyncio.create_task(other.score([text(4)], soon()))
        stays = asyncio.create_task(one.score([text(5)], soon(np.inf)))
        await asyncio.sleep(0.05)
        cancelled.cancel()
        with pytest.raises(EngineUnavailableError, match="before the deadline"):
            await late
        await other.close()
        with pytest.raises(EngineUnavailableError, match="closed"):
            await lost
        await asyncio.sleep(0.05)
        held.go.set()
        await asyncio.gather(first, stays)
    assert held.computed == [[text(1).text], [text(5).text]]


async def test_what_the_engine_refuses_is_told(artifacts: list[Artifact], url: str) -> None:
    options = EngineOptions(queue_prompts=2)
    async with listening(url, Held(artifacts), options=options), joined(url, artifacts) as gateway:
        with pytest.raises(EngineUnavailableError, match="more than the engine's queue ever holds: 3 prompts"):
            await gateway.score([text(1), text(2), text(3)], soon())
        with pytest.raises(EngineUnavailableError, match="before the deadline"):
            await gateway.score([text(1)], soon(-1))
        with pytest.raises(EngineUnavailableError, match="token ids must be"):
            await gateway.score([Prompt(((2**31,),))], soon())
        assert (await gateway.score([text(1)], soon())).success.shape == (1, 2)


def frame(kind: int, payload: bytes = b"", number: int = 1) -> bytes:
    return HEADER.pack(len(payload), kind, number) + payload


SCORE = frame(Kind.SCORE, encode_prompts([text(1)], 30.0))
NO_PROMPTS = frame(Kind.SCORE, encode_prompts([], 30.0))
OTHER_PASSES = frame(Kind.SCORE, encode_prompts([Prompt(((1,),))], 30.0))


@pytest.mark.parametrize(
    ("sent", "before", "joins"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "over the bound", False),
        (frame(99), "unknown kind 99", False),
        (SCORE, "SCORE out of place", False),
        (HEADER.pack(2**31, Kind.SCORE, 1), "a frame of 2147483648 bytes, over the bound of 33554432", True),
        (frame(Kind.SCORE, b"garbage"), "prompts that cannot be read", True),
        (NO_PROMPTS, "no prompts for the 0 passes here", True),
        (OTHER_PASSES, "no prompts for the 0 passes here", True),
        (frame(Kind.HELLO), "HELLO out of place", True),
    ],
)
async def test_garbage_closes_its_own_connection_alone(
    sent: bytes, before: str, joins: bool, artifacts: list[Artifact], url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with listening(url, Held(artifacts)), joined(url, artifacts) as gateway:
        reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        size, kind, _ = HEADER.unpack(await reader.readexactly(HEADER.size))
        hello = await reader.readexactly(size)
        assert kind == Kind.HELLO
        if joins:
            writer.write(frame(Kind.JOIN, proof(b"", hello[1:]) + served_sha256(artifacts), 0))
            assert await reader.readexactly(HEADER.size) == frame(Kind.WELCOME, number=0)
        writer.write(sent)
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        assert before in caplog.text
        assert (await gateway.score([text(1)], soon())).success.shape == (1, 2)


async def test_who_never_joins_is_sent_away(
    artifacts: list[Artifact], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "JOIN_S", 0.05)
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 1)
    async with listening(url, Held(artifacts)):
        reader, writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        extra, extra_writer = await asyncio.open_unix_connection(url.removeprefix("unix://"))
        async with asyncio.timeout(5):
            assert await extra.read() == b""  # one too many
            assert len(await reader.read()) == HEADER.size + 17
        writer.close()
        extra_writer.close()


async def test_what_is_no_engine_is_not_joined(
    artifacts: list[Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "JOIN_S", 0.2)

    said: list[bytes] = []

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(said))
        with suppress(ConnectionError):
            await reader.read()
        writer.close()
        ended.release()

    path, ended = tmp_path / "other.sock", asyncio.Semaphore(0)
    async with await asyncio.start_unix_server(greet, path):
        for said[:] in ([b"220 smtp.example.org ESMTP\r\n"], [frame(Kind.SCORES, b"", 0)], []):
            async with joined(f"unix://{path}", artifacts) as gateway:
                assert not gateway.ready
            await ended.acquire()
        said[:] = [frame(Kind.HELLO, bytes([77]) + bytes(16), 0)]
        with pytest.raises(ProbeError, match="it is of another version"):
            await SocketEngine(f"unix://{path}", artifacts).start()
        await ended.acquire()


async def test_a_dead_engines_socket_is_replaced_and_a_living_ones_is_not(tmp_path: Path) -> None:
    url = f"unix://{tmp_path}/engine.sock"
    bind(url).close()  # its file stays
    with bind(url) as sock:
        sock.listen()
        with pytest.raises(ProbeError, match=r"cannot listen at unix:///.*in use"):
            bind(url)
    with pytest.raises(ProbeError, match=r"cannot listen at tcp://192\.0\.2\.1:1"):
        bind("tcp://192.0.2.1:1")


@pytest.mark.parametrize("url", ["tcp://host", "tcp://host:1/path", "unix://relative", "http://h:1", "tcp://a@h:1", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(ValueError, match="is no address of an engine"):
        check_url(url)
    assert check_url("tcp://[::1]:9100") == "tcp://[::1]:9100"
