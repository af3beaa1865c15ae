"""`pika serve` and `pika up`: run the gateway until it is told to stop."""

import argparse
import asyncio
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import uvicorn
import uvloop

from probes.base import ProbeError
from probes.checks import CHECKS
from probes.hub_errors import HubAwayError
from server.app import create_app
from server.config import ConfigError, Settings, load
from server.launch import LaunchError, launched

logger = logging.getLogger(__name__)

SHUTDOWN_S = 5
KEEP_ALIVE_S = 60
"""Idle connections are closed later than most clients drop them, so that none is closed under a new request."""

Read = Callable[[], Settings]
"""Reads the configuration file, with what the command line says on top."""
Start = Callable[[Read, socket.socket], Coroutine[None, None, None]]


def serve(argv: list[str]) -> int:
    """`pika serve`."""
    parser = _parser(
        "serve",
        "Run the gateway in front of servers that run already.",
        "  pika serve pool.yaml\n  pika serve pool.yaml --host 0.0.0.0 --port 8000",
    )
    return _run(parser.parse_args(argv), _serve)


def up(argv: list[str]) -> int:
    """`pika up`."""
    parser = _parser(
        "up",
        "Start the vLLM servers that the pool's `launch` entries describe, wait until they are healthy, then run the\n"
        "gateway. Stops them with itself.",
        "  pika up offline/nano_pool/pool.yaml\n  pika up pool.yaml --port 8000",
    )
    return _run(parser.parse_args(argv), _up)


def _parser(name: str, description: str, examples: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"pika {name}",
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the pool")
    parser.add_argument("--host", help="address to listen on (default: the file's server.host)")
    parser.add_argument("--port", type=int, help="port to listen on, 0 for any free one (default: server.port)")
    parser.add_argument(
        "--allow-mismatch",
        action="append",
        default=[],
        choices=CHECKS,
        help="serve probes in spite of this failed check (repeatable); answers then carry the flag mismatch-<check>",
    )
    parser.add_argument("--log-level", default="info", choices=("debug", "info", "warning", "error"))
    return parser


def _run(args: argparse.Namespace, start: Start) -> int:
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    # httpx would log each of our requests again as an upstream one; uvicorn what we say ourselves.
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        settings = read(args)
        # The port is taken first: nothing is started for a gateway that could not listen.
        with listen(
            args.host or settings.server.host, settings.server.port if args.port is None else args.port
        ) as sock:
            run_until_signalled(start(lambda: read(args), sock))
    except (ConfigError, ProbeError, LaunchError) as error:
        print(f"pika: {error}", file=sys.stderr)
        # The Hub comes back: whoever started us may try again, which mends no configuration.
        return 1 if isinstance(error, HubAwayError) else 2
    return 0


def read(args: argparse.Namespace) -> Settings:
    """The configuration that the command line names.

    Raises:
        ConfigError: it cannot be used.
    """
    settings = load(args.config)
    allowed = list(dict.fromkeys([*settings.engine.allow_mismatch, *args.allow_mismatch]))
    return settings.model_copy(update={"engine": settings.engine.model_copy(update={"allow_mismatch": allowed})})


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"port {port} does not exist: choose one from 0 (any free one) to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address)
            # Two sockets may both be bound with SO_REUSEADDR, but only one can listen. Who asks early waits.
            sock.listen()
        except BaseException:
            sock.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"cannot listen on {host}:{port} ({reason}): free it, or choose another with --port"
        ) from error
    return sock


async def _serve(read: Read, sock: socket.socket) -> None:
    await run_gateway(read, sock)


async def _up(read: Read, sock: socket.socket) -> None:
    configured = read()
    for problem in configured.unserved.values():  # before servers are started for the others
        raise ConfigError(problem)
    async with launched(configured) as running:

        def read_running() -> Settings:
            """As configured now, its models served by the servers that run.

            Raises:
                ConfigError: the models have changed.
            """
            now = read()
            if now.models != configured.models:
                raise ConfigError("models have changed: restart `pika up` to launch them; a reload takes all the rest")
            return now.model_copy(update={"models": running.models})

        await run_gateway(read_running, sock)


def run_until_signalled(work: Coroutine[None, None, None]) -> None:
    """Run `work`; SIGINT and SIGTERM cancel it, so that whatever it started is stopped on the way out.

    SIGHUP, which would kill us, does nothing until `work` handles it.
    """

    async def main() -> None:
        task = asyncio.create_task(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, task.cancel)
        loop.add_signal_handler(signal.SIGHUP, logger.warning, "SIGHUP ignored: not ready yet, send it again later")
        with suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class GatewayServer(uvicorn.Server):
    """uvicorn inside our own lifespan and signal handling.

    Its own lifespan protocol would turn an exception at start into a traceback and an exit code, and it would raise
    the signals that it catches again, killing us before we cleaned up.
    """

    def __init__(self, config: uvicorn.Config, state: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.lifespan_state = state

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state.update(self.lifespan_state)
        await super().startup(sockets)
        if sockets:
            host, port = sockets[0].getsockname()[:2]
            logger.info("gateway ready on http://%s:%d", host, port)


async def run_gateway(read: Read, sock: socket.socket) -> None:
    """Serve until cancelled; open requests then have `SHUTDOWN_S` to end. SIGHUP reloads.

    Raises:
        ConfigError, ProbeError: before anything is served.
    """
    app = create_app(read())
    config = uvicorn.Config(
        app,
        http="httptools",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=SHUTDOWN_S,
    )
    async with app.router.lifespan_context(app) as state:
        # What stands now stays: garbage collections need not look through it again and again.
        gc.collect()
        gc.freeze()
        server = GatewayServer(config, state or {})
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        reloads: set[asyncio.Task[bool]] = set()

        def reload() -> None:
            task = asyncio.create_task(app.state.live.reload(read))
            reloads.add(task)
            task.add_done_callback(reloads.discard)

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            server.should_exit = True
            await serving
            raise
