"""One of several gateway processes: answers at a socket that its parent holds, and serves what its parent says.

`server.workers.parent` starts it:

    python -m server.workers.worker SLOT WORKERS SOCKET_DESCRIPTOR METRICS_FOLDER [log options]
"""

import argparse
import asyncio
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from probes.base import ProbeError
from probes.engine.worker import die_with_parent, private_stdout
from server.app import app_of
from server.commands.serve import add_log_options, run_until_signalled
from server.config import ConfigError
from server.gateway import serve
from server.live import Live, Prepared
from server.log import QueueHandler, logging_to_stderr
from server.workers.acceptor import Acceptor, Counts
from server.workers.orders import MAX_LINE_BYTES, decode, decode_order, encode
from server.workers.shared_metrics import Shared


def main(argv: list[str]) -> None:
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        os._exit(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("slot", type=int)
    parser.add_argument("workers", type=int)
    parser.add_argument("descriptor", type=int)
    parser.add_argument("metrics", type=Path)
    add_log_options(parser)
    args = parser.parse_args(argv)
    shared = Shared(args.metrics, args.slot, args.workers)
    with (
        private_stdout() as out,
        socket.socket(fileno=args.descriptor) as sock,
        logging_to_stderr(args.log_level, args.log_format, {"worker": args.slot}) as log,
    ):
        run_until_signalled(work(shared, sock, out, log), log)


async def work(shared: Shared, sock: socket.socket, out: BinaryIO, log: QueueHandler) -> None:
    """Serve until cancelled."""
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    def say(message: dict[str, Any]) -> None:
        out.write(encode(message))
        out.flush()

    obeying: set[asyncio.Task[None]] = set()
    try:
        live = Live(decode_order(decode(await reader.readline())), shared)
        log.on_drop = live.metrics.log_dropped.inc

        def started() -> None:
            orders = Orders(live, reader, say)
            live.reread = orders.reread
            obeying.add(asyncio.create_task(orders.obey()))
            say({"done": True})

        await serve(app_of(live), partial(Acceptor, sock, Counts(shared.folder, shared.workers), shared.slot), started)
    except (ConfigError, ProbeError) as error:
        say({"error": str(error)})


class Orders:
    """What the parent asks of a running worker."""

    def __init__(self, live: Live, reader: asyncio.StreamReader, say: Callable[[dict[str, Any]], None]) -> None:
        self.live = live
        self.reader = reader
        self.say = say
        self.prepared: Prepared | None = None
        self.rereading: list[asyncio.Future[str | None]] = []
        """Who waits for the reloads that the parent was asked for, in order."""

    async def reread(self) -> bool:
        """Ask the parent for a reload, which all workers take or none; False where it is refused."""
        waiting = asyncio.get_running_loop().create_future()
        self.rereading.append(waiting)
        self.say({"reload": True})
        self.live.refusal = await waiting
        return self.live.refusal is None

    async def obey(self) -> None:
        """Do as told until the parent is gone, then end with it."""
        while line := await self.reader.readline():
            message = decode(line)
            try:
                await getattr(self, f"_{message['do']}")(message)
                self.say({"done": True})
            except (ConfigError, ProbeError) as error:
                self.say({"error": str(error)})
            except Exception as error:
                self.say({"error": repr(error)})
        os._exit(1)

    async def _nothing(self, message: dict[str, Any]) -> None:
        """Our event loop runs: that is all that was asked."""

    async def _prepare(self, message: dict[str, Any]) -> None:
        self.prepared = await self.live.prepare(await asyncio.to_thread(decode_order, message))

    async def _take(self, message: dict[str, Any]) -> None:
        """Serve what is prepared, and say when nothing needs the old parts any more."""
        assert self.prepared is not None
        prepared, self.prepared = self.prepared, None
        left = self.live.take(prepared)
        left.add_done_callback(lambda _: self.say({"left": message["leaves"]}))

    async def _drop(self, message: dict[str, Any]) -> None:
        if self.prepared is not None:
            prepared, self.prepared = self.prepared, None
            await prepared.opened.aclose()

    async def _reloaded(self, message: dict[str, Any]) -> None:
        """What became of a reload that we asked for."""
        waiting = self.rereading.pop(0)
        if not waiting.done():
            waiting.set_result(message["refusal"])

    async def _count(self, message: dict[str, Any]) -> None:
        """One worker counts what concerns all."""
        self.live.metrics.reloads.labels(message["result"]).inc()


if __name__ == "__main__":
    main(sys.argv[1:])
