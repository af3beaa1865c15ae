"""A gateway process: an application on a listening socket, until it is told to stop."""

import asyncio
import gc
import logging
import math
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from server.app import create_app
from server.config import Settings
from server.http.connection import Connection
from server.http.listen import url_of
from server.live import Live, described
from server.log import QueueHandler
from server.workers.acceptor import Acceptor

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 60
"""Idle connections are closed later than most clients drop them, so that none is closed under a new request."""
SWITCH_S = 0.0005
"""A thread that renders prompts gives way to the event loop after so long; Python's own 5 ms would be felt."""
YOUNG_OBJECTS = 20_000
"""So many new objects have Python look for garbage among them. Requests leave none, however they end; with Python's own
700, looking takes a thirtieth of each."""
LAST_WORDS_S = 6
"""Requests that are cut short have so long to say so."""

Read = Callable[[], Settings]
"""Reads the configuration file, with what the command line says on top."""
Accepting = Callable[[Callable[[], Connection], Sized], Acceptor]
"""Accepts connections beside other workers; takes what makes one, and all that are open."""


class GatewayServer(uvicorn.Server):
    """uvicorn inside our own lifespan and signal handling.

    Its own lifespan protocol would turn an exception at start into a traceback and an exit code, and it would raise
    the signals that it catches again, killing us before we cleaned up.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        state: Mapping[str, Any],
        on_started: Callable[[], None],
        accepting: Accepting | None,
    ) -> None:
        super().__init__(config)
        self.lifespan_state = state
        self.on_started = on_started
        self.accepting = accepting
        self.acceptor: Acceptor | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state.update(self.lifespan_state)
        await super().startup(sockets)
        if self.accepting is not None:
            self.acceptor = self.accepting(self._connection, self.server_state.connections)
            self.servers.append(self.acceptor)  # type: ignore[arg-type]  # of a server only its end is asked
        self.on_started()

    def _connection(self) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state)

    async def on_tick(self, counter: int) -> bool:
        if self.acceptor is not None:
            self.acceptor.tell()
        return await super().on_tick(counter)


async def run_gateway(read: Read, sock: socket.socket, log: QueueHandler) -> None:
    """Serve until cancelled, then drain. SIGHUP reloads.

    Raises:
        ConfigError, ProbeError: before anything is served.
    """
    app = create_app(read())
    live: Live = app.state.live
    log.on_drop = live.metrics.log_dropped.inc
    live.reread = partial(live.reload, read)
    reloads: set[asyncio.Task[bool]] = set()

    def reload() -> None:
        task = asyncio.create_task(live.reload(read))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    def started() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        logger.info("routing: %s", described(live.state.pool))
        logger.info("gateway ready on %s", url_of(sock))

    await serve(app, sock, started)


async def serve(app: FastAPI, listening: socket.socket | Accepting, on_started: Callable[[], None]) -> None:
    """Serve an application of ours until cancelled; open requests then have `server.drain_s` to end.

    Args:
        listening: a socket of this process alone, or what accepts at one that workers share.

    Raises:
        ConfigError, ProbeError: before anything is served.
    """
    files = allow_many_files()
    sys.setswitchinterval(SWITCH_S)
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # who asks is nothing that we read
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    async with app.router.lifespan_context(app) as state:
        # What stands now stays: garbage collections need not look through it again and again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        live: Live = app.state.live
        if files < 2 * live.state.settings.limits.connections:
            logger.warning("only %d open files are allowed: raise `ulimit -Hn`, or lower limits.connections", files)
        sockets = [listening] if isinstance(listening, socket.socket) else []
        accepting = None if isinstance(listening, socket.socket) else listening
        server = GatewayServer(config, state or {}, on_started, accepting)
        serving = asyncio.create_task(server.serve(sockets=sockets))
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            await _drain(server, live, serving)
            raise


async def _drain(server: GatewayServer, live: Live, serving: asyncio.Task[None]) -> None:
    """Listen no more, and end with the last open request, or when time is up."""
    drain_s = live.drain()
    logger.info("draining: %d requests have %g s to end", live.in_flight, drain_s)
    server.config.timeout_graceful_shutdown = math.ceil(drain_s + LAST_WORDS_S)
    server.should_exit = True
    hurry = asyncio.get_running_loop().call_later(drain_s, live.end_all)
    await serving
    hurry.cancel()
    logger.info("drained")


def allow_many_files() -> int:
    """Open files that this process may have from now on; shells often allow it 1,024 unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft
