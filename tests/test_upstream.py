"""Connections to an upstream, against a server that does what each test says."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from server.upstream.connection import Connection
from server.upstream.keep_alive import BrokenError, SilentError, StaleError, UnreachableError, Upstream

pytestmark = pytest.mark.anyio
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Server:
    def __init__(self) -> None:
        self.accepted = 0
        self.requests = 0
        self.left = asyncio.Event()
        """Set when the other side closed a connection."""


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[Upstream, Server]]:
    """`serve` is run for each request; a connection on which it writes nothing is closed."""
    counts = Server()
    tasks = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        tasks.add(task)
        counts.accepted += 1
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                counts.requests += 1
                await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            counts.left.set()
        except asyncio.CancelledError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", {})
    try:
        yield upstream, counts
    finally:
        upstream.close()
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def sends(data: bytes, close: bool = False) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return serve


def closes_at(number: int) -> Serve:
    """Answers, but for one request: closes without a word, as where it closed while the request was on its way."""
    numbers = itertools.count(1)

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(numbers) == number:
            writer.close()
        else:
            writer.write(OK)

    return serve


async def send(upstream: Upstream) -> Connection:
    return await upstream.send(upstream.head("/v1/x") + b"content-length: 0\r\n\r\n", connect_s=2)


async def whole(connection: Connection, limit: int = 1000, seconds: float = 5) -> bytes:
    try:
        return await connection.whole(limit, asyncio.get_running_loop().time() + seconds)
    finally:
        connection.finish()


async def test_connections_are_kept() -> None:
    async with serving(sends(OK)) as (upstream, server):
        for _ in range(5):
            assert await whole(await send(upstream)) == b"ok"
        assert server.accepted == 1


async def test_requests_at_one_time_have_connections_of_their_own() -> None:
    async with serving(sends(OK)) as (upstream, server):
        connections = [await send(upstream) for _ in range(3)]
        assert [await whole(one) for one in connections] == [b"ok"] * 3
        assert server.accepted == 3


async def test_idle_connections_are_closed() -> None:
    async with serving(sends(OK)) as (upstream, server):
        await whole(await send(upstream))
        async with asyncio.timeout(10):
            await server.left.wait()


async def test_an_answer_left_unread_closes_its_connection() -> None:
    async with serving(sends(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok")) as (upstream, server):
        connection = await send(upstream)
        await connection.head(asyncio.get_running_loop().time() + 5)
        connection.finish()
        async with asyncio.timeout(5):
            await server.left.wait()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
        b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=y\r\no\r\n1\r\nk\r\n0\r\ntrailer: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok",
    ],
    ids=["continue", "hints", "chunked", "until closed", "HTTP/1.0"],
)
async def test_every_form_of_an_answer_is_read(answer: bytes) -> None:
    async with serving(sends(answer, close=True)) as (upstream, _):
        connection = await send(upstream)
        assert await whole(connection) == b"ok"
        assert connection.status == 200
        assert b"trailer" not in dict(connection.headers)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\na\r\n b: c\r\n\r\n",
        OK + OK,
    ],
    ids=["nothing", "short", "no last chunk", "upgrade", "both lengths", "bad header", "two answers"],
)
async def test_what_is_no_whole_answer_is_broken(answer: bytes) -> None:
    async with serving(sends(answer, close=True)) as (upstream, _):
        with pytest.raises(BrokenError):
            await whole(await send(upstream))


async def test_too_large_an_answer_is_broken() -> None:
    large = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + b"x" * 1_000_000
    async with serving(sends(large)) as (upstream, _):
        with pytest.raises(BrokenError, match="more than 1000 bytes"):
            await whole(await send(upstream))


async def test_silence_ends() -> None:
    async with serving(sends(b"HTTP/1.1 200 OK\r\n")) as (upstream, server):
        with pytest.raises(SilentError):
            await whole(await send(upstream), seconds=0.2)
        async with asyncio.timeout(5):
            await server.left.wait()


async def test_a_kept_connection_that_was_closed_is_stale() -> None:
    async with serving(closes_at(2)) as (upstream, _):
        await whole(await send(upstream))
        with pytest.raises(StaleError):
            await whole(await send(upstream))


async def test_a_server_that_closes_at_once_is_broken() -> None:
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    upstream = Upstream(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", {})
    async with server:
        for _ in range(20):
            with pytest.raises(BrokenError):
                await whole(await send(upstream))
    upstream.close()
    with pytest.raises(UnreachableError):
        await send(upstream)


async def test_what_comes_unasked_closes_the_connection() -> None:
    async with serving(sends(OK)) as (upstream, server):
        connection = await send(upstream)
        await whole(connection)
        connection.data_received(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        assert await whole(await send(upstream)) == b"ok"
        assert server.accepted == 2


async def test_small_answers_are_got_whole_on_kept_connections() -> None:
    async with serving(closes_at(2)) as (upstream, server):
        assert await upstream.get("/metrics", 1000, within_s=5) == (200, b"ok")
        assert await upstream.get("/metrics", 1000, within_s=5) == (200, b"ok")
        assert await upstream.get("/health", None, within_s=5) == (200, b"")
        assert (server.requests, server.accepted) == (4, 2)


async def test_an_answer_that_is_not_wanted_is_not_waited_for() -> None:
    async with serving(sends(b"HTTP/1.1 404 No\r\ncontent-length: 100\r\n\r\n")) as (upstream, server):
        assert await upstream.get("/health", None, within_s=5) == (404, b"")
        async with asyncio.timeout(5):
            await server.left.wait()


async def test_who_says_nothing_is_waited_for_so_long() -> None:
    async with serving(sends(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n")) as (upstream, _):
        with pytest.raises(SilentError):
            await upstream.get("/metrics", 1000, within_s=0.2)
