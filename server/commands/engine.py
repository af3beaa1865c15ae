"""`pika engine`: probe models on a machine, or in a process, of their own, for any number of gateways."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from probes.base import ProbeError
from probes.checks import CHECKS
from probes.engine.address import bind, check_url
from probes.engine.base import BrokenEngineError
from probes.engine.worker import serve
from probes.hub_errors import HubAwayError
from server.commands.serve import add_log_options, read, run_until_signalled
from server.config import ConfigError
from server.engine import options, secret
from server.http.loopback import is_local_address
from server.log import QueueHandler, logging_to_stderr
from server.pool import load_probes

logger = logging.getLogger(__name__)

EXAMPLES = """\
examples:
  pika engine pool.yaml --listen tcp://127.0.0.1:9100      gateways of this machine: engine: {kind: remote, url: ...}
  pika engine pool.yaml --listen unix:///run/pika/engine.sock
  PIKA_ENGINE_KEY=... pika engine pool.yaml --listen tcp://10.0.0.5:9100

Both sides read the same configuration; its engine.api_key_env names the variable of a secret that both must know. It
keeps strangers out, but encrypts nothing: between machines use a network of your own."""


def main(argv: list[str]) -> int:
    """`pika engine`; exit code 0 told to stop, 1 hangs or the Hub is away, 2 wrong input."""
    parser = argparse.ArgumentParser(
        prog="pika engine",
        description="Score prompts for gateways whose configuration says engine: {kind: remote, url: ...}.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the YAML file of the pool")
    parser.add_argument(
        "--listen", metavar="URL", help="tcp://HOST:PORT or unix:///PATH (default: the file's engine.url)"
    )
    parser.add_argument("--allow-mismatch", action="append", default=[], choices=CHECKS, help="as for pika serve")
    add_log_options(parser)
    args = parser.parse_args(argv)
    with logging_to_stderr(args.log_level, args.log_format) as log:
        return _run(args, log)


def _run(args: argparse.Namespace, log: QueueHandler) -> int:
    try:
        settings = read(args)
        url = _address([args.listen] if args.listen else settings.engine.urls)
        key = secret(settings.engine).encode()
        if not key and urlsplit(url).scheme == "tcp" and not is_local_address(urlsplit(url).hostname or ""):
            logger.warning("whoever reaches %s may ask: name a secret's variable as engine.api_key_env", url)
        with bind(url) as sock:
            artifacts = list(load_probes(settings).values())  # in the order in which gateways have them
            if not artifacts:
                raise ConfigError("no arm has a probe: there is nothing to compute")
            work = serve(
                artifacts,
                options(settings.engine),
                sock,
                secret=key,
                ready=lambda: logger.info("engine ready at %s", url),
            )
            run_until_signalled(work, log)
    except (ConfigError, ProbeError) as error:
        print(f"pika: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    except BrokenEngineError:
        logger.exception("the engine ends")
        log.close()
        os._exit(1)  # its thread would be waited for
    return 0


def _address(urls: Sequence[str]) -> str:
    """
    Raises:
        ConfigError: it is not one address that we can listen at.
    """
    if len(urls) != 1:
        raise ConfigError("say where to listen: --listen tcp://127.0.0.1:9100, or engine.url in the file")
    try:
        return check_url(urls[0])
    except ValueError as error:
        raise ConfigError(str(error)) from error
