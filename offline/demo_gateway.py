"""`pika up` as a child process that ends with us."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from probes.engine.worker import die_with_parent

HOST = "127.0.0.1"
START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 15
POLL_S = 0.2
LAST_LINES = 20


class GatewayError(Exception):
    """`pika up` did not start, or has ended; the message shows its last lines."""


@dataclass(frozen=True)
class Gateway:
    """A running `pika up`."""

    process: subprocess.Popen[bytes]
    url: str
    log: IO[bytes]

    def check(self) -> None:
        """
        Raises:
            GatewayError: it has ended.
        """
        if (code := self.process.poll()) is not None:
            raise GatewayError(f"pika up ended with exit code {code}; its last lines:\n{self._last_lines()}")

    def wait(self) -> None:
        """Until it ends.

        Raises:
            GatewayError: it has ended.
        """
        self.process.wait()
        self.check()

    def wait_ready(self) -> None:
        """Until models and gateway are ready.

        Raises:
            GatewayError: it ended instead, or took too long.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        with httpx.Client(trust_env=False, timeout=5) as client:
            while time.monotonic() < deadline:
                self.check()
                try:
                    if client.get(f"{self.url}/ready").is_success:
                        # Somebody else may answer at this port, while ours finds it taken and ends.
                        self.check()
                        return
                except httpx.TransportError:
                    pass
                time.sleep(POLL_S)
        raise GatewayError(f"pika up was not ready within {START_TIMEOUT_S} s; its last lines:\n{self._last_lines()}")

    def _last_lines(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").splitlines()
        return "\n".join(f"    {line}" for line in lines[-LAST_LINES:])


@contextmanager
def gateway(config: Path, port: int | None) -> Iterator[Gateway]:
    """Start `pika up CONFIG` on a port, by default any free one; stop it on leaving, whatever the reason."""
    port = port or _free_port()
    # Safe path: no file of the folder we stand in is taken for our packages.
    command = [sys.executable, "-P", "-m", "server", "up", str(config), "--host", HOST, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            # The terminal's Ctrl-C is for us; we stop the child.
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGTERM),
        )
        try:
            yield Gateway(process, f"http://{HOST}:{port}", log)
        finally:
            _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        # Its servers notice, and end by themselves.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.create_server((HOST, 0)) as sock:
        port: int = sock.getsockname()[1]
    return port
