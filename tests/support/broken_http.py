"""Handlers that break HTTP, JSON or events on purpose; `upstream.py` has those that fail, hang and drop."""

import asyncio

from tests.support.upstream import CHUNK, EVENTS, WHOLE, Connection, Handler, Request, chunk, response


def sends(data: bytes, close: bool = False) -> Handler:
    """Answers with these very bytes."""

    async def handler(_: Request, to: Connection) -> None:
        await to.send(data)
        if close:
            to.writer.close()

    return handler


def answers_with(body: bytes, status: int = 200, *headers: str) -> Handler:
    return sends(response(status, body, *headers))


async def drips_its_head(_: Request, to: Connection) -> None:
    """A byte every 50 ms, for half a minute at the most."""
    for byte in b"HTTP/1.1 200 OK\r\nx: " + b"y" * 600:
        await to.send(bytes([byte]))
        if to.reader.at_eof():
            break
        await asyncio.sleep(0.05)
    to.upstream.left.set()


async def hangs_after_head(_: Request, to: Connection) -> None:
    await to.send(EVENTS)
    await to.until_left()


async def hangs_before_its_body(_: Request, to: Connection) -> None:
    """Not a stream: the head of a whole answer, then silence."""
    await to.send(response(200, WHOLE).removesuffix(WHOLE))
    await to.until_left()


async def answers_without_end(_: Request, to: Connection) -> None:
    """Not a stream: one body that goes on."""
    await to.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
    while not to.reader.at_eof():
        await to.send(chunk(b" " * 1024 * 1024))
    to.upstream.left.set()


promises_too_much = sends(response(200, WHOLE).replace(b"content-length: ", b"content-length: 9"), close=True)
promises_too_little = sends(response(200, WHOLE) + b"more")
speaks_no_http = sends(b"220 smtp.example ESMTP\r\n")
broken_json = answers_with(WHOLE[:-5])
whole_huge_head = sends(response(200, WHOLE, *(f"x-{i}: {'y' * 1000}" for i in range(80))))
huge_head = sends(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 1_000_000 + b"\r\n\r\n")
no_such_code = answers_with(WHOLE, 999)
no_events = sends(EVENTS + chunk(b"<html>no") + b"0\r\n\r\n")
garbled_event = CHUNK + b"data: {broken\n\n: \xff\xfe\n\nno field\n\n" + CHUNK
garbles_an_event = sends(EVENTS + chunk(garbled_event) + b"0\r\n\r\n")
breaks_its_chunks = sends(EVENTS + chunk(CHUNK) + b"zz\r\n")
