"""`pika serve` as a process."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import no_process_left, until

ROOT = Path(__file__).parents[2]
BODY = {"model": "auto", "messages": [{"role": "user", "content": "Begin with 2. Add 1."}]}


class Served:
    """One that is ready."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self._said() is not None or process.poll() is not None, 60, "the gateway is ready")
        match = self._said()
        assert match is not None, "".join(self.log)
        self.client = httpx.Client(base_url=match[1], timeout=30)

    def _said(self) -> re.Match[str] | None:
        return re.search(r"gateway ready on (http://[\w.:]+)", "".join(self.log))

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)

    def hang_up(self, said: str) -> None:
        """SIGHUP, then wait for the log to say how it went."""
        before = len(self.log)
        self.process.send_signal(signal.SIGHUP)
        until(lambda: said in "".join(self.log[before:]), 60, f"the log says {said!r}: {self.log}")

    def models(self) -> dict[str, Any]:
        return {entry["id"]: entry for entry in self.client.get("/v1/models").json()["data"]}


@contextmanager
def served(file: Path, environment: Mapping[str, str] | None = None, *options: str) -> Iterator[Served]:
    """
    Args:
        environment: beside this process's own.
    """
    command = [sys.executable, "-m", "server", "serve", str(file), "--port", "0", *options]
    everything = {**os.environ, **(environment or {})}
    with (
        no_process_left(),
        subprocess.Popen(command, cwd=ROOT, env=everything, stderr=subprocess.PIPE, text=True) as process,
    ):
        try:
            gateway = Served(process)
            yield gateway
            gateway.client.close()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=30)
