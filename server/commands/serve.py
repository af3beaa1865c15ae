"""`pika serve` and `pika up`: run the gateway until it is told to stop."""

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path

import uvloop

from probes.base import ProbeError
from probes.checks import CHECKS
from probes.hub_errors import HubAwayError
from server.config import ConfigError, Settings, load
from server.gateway import Read, run_gateway
from server.http.listen import listen
from server.launch.pool import LaunchError, launched
from server.log import FORMATS, LEVELS, QueueHandler, logging_to_stderr
from server.sections.serving import MAX_WORKERS, Server
from server.workers.parent import run_workers

logger = logging.getLogger(__name__)

STOP = (signal.SIGINT, signal.SIGTERM)

Serve = Callable[[Read, socket.socket], Coroutine[None, None, None]]
"""Answers at a listening socket until cancelled."""
Start = Callable[[Read, socket.socket, Serve], Coroutine[None, None, None]]


def serve(argv: list[str]) -> int:
    """`pika serve`."""
    parser = _parser(
        "serve",
        "Run the gateway in front of servers that run already.",
        "  pika serve pool.yaml\n  pika serve pool.yaml --workers 4 --log-format json\n"
        "  pika serve pool.yaml --host 0.0.0.0 --public",
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
        "--public",
        action="store_true",
        default=None,
        help="listen on an address that other machines reach; whoever reaches it may ask",
    )
    parser.add_argument(
        "--workers", type=_count, metavar="N", help="processes that answer (default: server.workers, 1)"
    )
    parser.add_argument(
        "--allow-mismatch",
        action="append",
        default=[],
        choices=CHECKS,
        help="serve probes in spite of this failed check (repeatable); answers then carry the flag mismatch-<check>",
    )
    add_log_options(parser)
    return parser


def _count(text: str) -> int:
    if not 1 <= int(text) <= MAX_WORKERS:
        raise argparse.ArgumentTypeError(f"1 to {MAX_WORKERS}")
    return int(text)


def add_log_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--log-level", default="info", choices=LEVELS)
    parser.add_argument(
        "--log-format",
        default="console",
        choices=FORMATS,
        help="lines on stderr: for people (default), or JSON objects with time, level, logger, message and more",
    )


def _run(args: argparse.Namespace, start: Start) -> int:
    with logging_to_stderr(args.log_level, args.log_format) as log:
        try:
            server = read(args).server
            # The port is taken first: nothing is started for a gateway that could not listen.
            with listen(server) as sock:
                run_until_signalled(start(lambda: read(args), sock, _serving(args, server, log)), log)
        except (ConfigError, ProbeError, LaunchError) as error:
            print(f"pika: {error}", file=sys.stderr)
            # The Hub comes back: whoever started us may try again, which mends no configuration.
            return 1 if isinstance(error, HubAwayError) else 2
    return 0


def _serving(args: argparse.Namespace, server: Server, log: QueueHandler) -> Serve:
    """One process as it always was, or several and their parent."""
    if server.workers == 1:
        return lambda read, sock: run_gateway(read, sock, log)
    options = ("--log-level", args.log_level, "--log-format", args.log_format)
    return lambda read, sock: run_workers(read, sock, server.workers, options)


def read(args: argparse.Namespace) -> Settings:
    """The configuration that the command line names, with what it says on top.

    Raises:
        ConfigError: it cannot be used.
    """
    settings = load(args.config)
    allowed = list(dict.fromkeys([*settings.engine.allow_mismatch, *args.allow_mismatch]))
    said = {name: getattr(args, name, None) for name in ("host", "port", "public", "workers")}
    return settings.model_copy(
        update={
            "engine": settings.engine.model_copy(update={"allow_mismatch": allowed}),
            "server": settings.server.model_copy(
                update={name: value for name, value in said.items() if value is not None}
            ),
        }
    )


async def _serve(read: Read, sock: socket.socket, serve: Serve) -> None:
    await serve(read, sock)


async def _up(read: Read, sock: socket.socket, serve: Serve) -> None:
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

        await serve(read_running, sock)


def run_until_signalled(work: Coroutine[None, None, None], log: QueueHandler | None = None) -> None:
    """Run `work`; SIGINT and SIGTERM cancel it, so that whatever it started is stopped on the way out.

    A second one ends this process at once, and the kernel what it started: all of that dies with its parent. SIGHUP,
    which would kill us, does nothing until `work` handles it.
    """

    async def main() -> None:
        task = asyncio.create_task(work)
        loop = asyncio.get_running_loop()

        def stop(number: signal.Signals) -> None:
            for again in STOP:
                loop.add_signal_handler(again, end_at_once, again)
            task.cancel()

        def end_at_once(number: signal.Signals) -> None:
            logger.warning("a second %s: ending at once", number.name)
            if log is not None:
                log.close()
            os._exit(128 + number)

        for number in STOP:
            loop.add_signal_handler(number, stop, number)
        loop.add_signal_handler(signal.SIGHUP, logger.warning, "SIGHUP ignored: not ready yet, send it again later")
        with suppress(asyncio.CancelledError):
            await task

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
