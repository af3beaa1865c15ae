"""An engine in a process of its own: a forward pass holds the GIL for milliseconds, which the event loop would feel.

Imports no torch.
"""

import asyncio
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path

import orjson

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.engine.base import EngineOptions, Prompt, Scores
from probes.engine.client import SocketEngine
from probes.engine.served import encode_artifact
from probes.engine.wire import Report

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0
"""A child that has lived for so long was well: when it dies, the next one is not kept waiting for those before it."""
CHECK_S = 20.0
HUNG_S = 30.0
"""A child that says nothing to a new connection for so long is taken for dead and restarted."""
LOAD_S = 1800.0
"""A restarted child that takes longer to load what the first one had at hand is taken for dead too."""
MAX_LINE_BYTES = 2**20
ENVIRONMENT = {
    # Threads that spin while they wait stall each other where cores are shared, with vLLM say.
    "OMP_WAIT_POLICY": "PASSIVE",
    # glibc keeps what a forward pass frees, which the next one needs again: page by page that costs a tenth of a small
    # model's time. And it keeps no small pieces apart, between which large ones could not grow together again: after
    # many prompts of as many lengths, that would be a fifth of the process. All threads share one heap, in huge pages
    # where Linux gives them to who asks: some 4% of a small model's time.
    "GLIBC_TUNABLES": "glibc.malloc.trim_threshold=0x10000000:glibc.malloc.mmap_threshold=0x2000000"
    ":glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0:glibc.malloc.arena_max=1:glibc.malloc.hugetlb=1",
}
"""Of the child, where the gateway's own says nothing else."""


class EngineProcess:
    """A child process that listens at a Unix socket, restarted should it die. Gateways of this user join at `url`.

    Args:
        artifacts: the probes, in the order of the scores.
    """

    def __init__(self, artifacts: Sequence[Artifact], options: EngineOptions | None = None) -> None:
        self._socket = Path(tempfile.gettempdir(), f"pika-engine-{secrets.token_hex(8)}", "engine.sock")
        self.url = f"unix://{self._socket}"
        self._arguments = (
            orjson.dumps(options or EngineOptions()).decode(),
            self.url,
            *map(encode_artifact, artifacts),
        )
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and return when it can score.

        Raises:
            ProbeError: a probe or a probe model cannot be loaded.
        """
        self._socket.parent.mkdir(mode=0o700)  # of this user alone, as is the socket in it
        try:
            process = await self._spawn()
        except BaseException:
            await self._end()
            raise
        self._supervisor = asyncio.create_task(self._supervise(process))

    async def close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        await self._end()

    async def _supervise(self, process: asyncio.subprocess.Process) -> None:
        """Start another child whenever one dies or hangs; ends when cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            loaded = time.monotonic()
            while process.returncode is None:
                try:
                    async with asyncio.timeout(CHECK_S):  # wait_for may swallow a cancellation
                        await process.wait()
                except TimeoutError:
                    if not await _speaks(self._socket, HUNG_S):
                        logger.error("the engine process hangs; killing it")
                        process.kill()
            if time.monotonic() - loaded >= STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            logger.error("the engine process ended with code %s; restarting it in %g s", process.returncode, backoff_s)
            self._process = None
            while self._process is None:
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
                try:
                    async with asyncio.timeout(LOAD_S):  # TimeoutError is an OSError
                        process = await self._spawn()
                except (ProbeError, OSError) as error:
                    await self._kill()
                    logger.error("cannot restart the engine: %s", str(error) or "it takes too long to load")

    async def _spawn(self) -> asyncio.subprocess.Process:
        """A child that has loaded its probe models and listens.

        Raises:
            ProbeError: it could not.
        """
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "probes.engine.worker",
            *self._arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env={**ENVIRONMENT, **os.environ},
            limit=MAX_LINE_BYTES,
        )
        assert process.stdout is not None
        line = await process.stdout.readline()
        if not line.endswith(b"\n"):
            code = await process.wait()
            raise ProbeError(
                f"the engine process ended with code {code} while it loaded the probe models; see what it wrote above"
            )
        if (error := orjson.loads(line)) is not None:
            raise ProbeError(error)
        return process

    async def _end(self) -> None:
        await self._kill()
        shutil.rmtree(self._socket.parent, ignore_errors=True)

    async def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
            await process.wait()


class ProcessEngine(EngineProcess):
    """An engine process and the connection to it. Satisfies `Engine`.

    Args:
        on_report: called with what the engine says of its work.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        options: EngineOptions | None = None,
        *,
        on_report: Callable[[Report], None] = lambda report: None,
    ) -> None:
        super().__init__(artifacts, options)
        self._client = SocketEngine(self.url, artifacts, on_report=on_report)

    @property
    def ready(self) -> bool:
        return self._client.ready

    async def start(self) -> None:
        """Start the child, join it, and return when it can score.

        Raises:
            ProbeError: a probe or a probe model cannot be loaded.
        """
        await super().start()
        try:
            await self._client.start()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        await self._client.close()
        await super().close()

    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """See `Engine.score`."""
        return await self._client.score(prompts, deadline)


async def _speaks(path: Path, within_s: float) -> bool:
    """Whether an engine greets who connects: its event loop runs, whatever it computes."""
    try:
        async with asyncio.timeout(within_s):
            reader, writer = await asyncio.open_unix_connection(path)
            with closing(writer):
                return bool(await reader.read(1))
    except OSError:  # TimeoutError is one
        return False
