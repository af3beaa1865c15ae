"""Time limits of connections, on the event loop that serves them."""

import asyncio
import socket
import time

import uvloop

from server.http.deadline import Deadline


async def ask_while_the_loop_is_busy(asks: bool) -> list[str]:
    """A client whose time is up while the loop does something else; it may have asked before."""
    loop = asyncio.get_running_loop()
    said: list[str] = []
    deadline = Deadline(loop, lambda: said.append("too slow"))
    ours, client = socket.socketpair()
    other, busy = socket.socketpair()
    with ours, client, other, busy:
        ours.setblocking(False)

        def heard() -> None:
            ours.recv(100)
            deadline.clear()
            said.append("heard")

        def answer_other() -> None:
            other.recv(100)
            if asks:
                client.sendall(b"GET")
            time.sleep(0.1)

        loop.add_reader(ours, heard)
        loop.add_reader(other, answer_other)
        deadline.set(0.05)
        busy.sendall(b"GET")
        await asyncio.sleep(0.2)
        loop.remove_reader(ours)
        loop.remove_reader(other)
        deadline.close()
    return said


def test_who_asks_while_the_loop_is_busy_is_heard_before_time_is_up() -> None:
    assert uvloop.run(ask_while_the_loop_is_busy(asks=True)) == ["heard"]


def test_time_is_up_for_who_says_nothing() -> None:
    assert uvloop.run(ask_while_the_loop_is_busy(asks=False)) == ["too slow"]
