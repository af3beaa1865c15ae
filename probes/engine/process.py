"""An engine in a process of its own: a forward pass holds the GIL for milliseconds, which the event loop would feel.

What arrives while one micro-batch is computed forms the next one. Imports no torch.
"""

import asyncio
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.engine.base import NOT_FINITE, EngineUnavailableError, Prompt, Scores
from probes.engine.batch import padding_tokens
from probes.engine.wire import LINE_BYTES, decode_scores, encode_artifact, encode_prompts

logger = logging.getLogger(__name__)

BATCH_PROMPTS = 64
BATCH_TOKENS = 16_384
"""What one micro-batch takes from the queue at most: later prompts do not wait long for it."""
HUNG_S = 60.0
"""A child that computes one micro-batch for longer is taken for dead and restarted."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0


@dataclass(frozen=True)
class BatchReport:
    """One computed micro-batch."""

    prompts: int
    tokens: int
    """Over all passes, padding left out."""
    padding_tokens: int
    queue_s: float
    """Wait of its first prompt."""


@dataclass(frozen=True, eq=False)
class _Waiting:
    prompt: Prompt
    deadline: float
    arrived: float
    scores: asyncio.Future[Scores]
    """Of this one prompt."""

    @property
    def tokens(self) -> int:
        return self.prompt.tokens


class ProcessEngine:
    """Scores prompts in a child process, which it restarts should it die. Satisfies `Engine`.

    Args:
        artifacts: the probes, in the order of the scores.
        device: cpu, cuda:N or auto.
        queue_prompts, queue_tokens: what may wait; more is refused at once.
        on_batch: called after each micro-batch.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        *,
        device: str = "auto",
        queue_prompts: int = 512,
        queue_tokens: int = 200_000,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
    ) -> None:
        self._arguments = (device, *(encode_artifact(artifact) for artifact in artifacts))
        self._queue_prompts = queue_prompts
        self._queue_tokens = queue_tokens
        self._on_batch = on_batch
        self._queue: deque[_Waiting] = deque()
        self._tokens = 0
        self._arrival = asyncio.Event()
        self._computing: list[_Waiting] = []
        self._process: asyncio.subprocess.Process | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._ready = False

    @property
    def ready(self) -> bool:
        return self._ready

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is no child."""
        return None if self._process is None else self._process.pid

    async def start(self) -> None:
        """Start the child and return when it can score.

        Raises:
            ProbeError: a probe or a probe model cannot be loaded.
        """
        try:
            process = await self._spawn()
        except BaseException:
            await self._end_process()
            raise
        self._ready = True
        self._supervisor = asyncio.create_task(self._supervise(process))

    async def close(self) -> None:
        if self._supervisor is not None:
            self._supervisor.cancel()
            with suppress(asyncio.CancelledError):
                await self._supervisor
        self._ready = False
        self._fail_all("the engine is closed")
        await self._end_process()

    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """See `Engine.score`."""
        loop = asyncio.get_running_loop()
        if not self._ready:
            raise EngineUnavailableError("the engine process is not running; it is being restarted")
        tokens = sum(prompt.tokens for prompt in prompts)
        holds = f"(engine.queue: {self._queue_prompts} prompts, {self._queue_tokens} tokens)"
        if len(prompts) > self._queue_prompts or tokens > self._queue_tokens:
            asked = f"{len(prompts)} prompts with {tokens} tokens at once"
            raise EngineUnavailableError(f"more than the engine's queue ever holds: {asked} {holds}; raise it")
        if len(self._queue) + len(prompts) > self._queue_prompts or self._tokens + tokens > self._queue_tokens:
            waits = f"{len(self._queue)} prompts with {self._tokens} tokens wait"
            raise EngineUnavailableError(f"the engine's queue is full: {waits} {holds}")
        now = loop.time()
        waiting = [_Waiting(prompt, deadline, now, loop.create_future()) for prompt in prompts]
        self._queue.extend(waiting)
        self._tokens += tokens
        self._arrival.set()
        try:
            async with asyncio.timeout_at(deadline):
                rows = await asyncio.gather(*(one.scores for one in waiting))
        except TimeoutError as error:
            raise EngineUnavailableError(
                "the engine did not answer before the deadline (engine.deadline_ms)"
            ) from error
        return Scores.concatenate(rows)

    async def _supervise(self, process: asyncio.subprocess.Process) -> None:
        """Compute micro-batches for as long as the child lives, then start another; ends when cancelled."""
        while True:
            batches = asyncio.create_task(self._compute_batches(process))
            died = asyncio.create_task(process.wait())
            try:
                await asyncio.wait((batches, died), return_when=asyncio.FIRST_COMPLETED)
            finally:
                self._ready = False
                batches.cancel()
                died.cancel()
            await asyncio.wait((batches,))
            if not batches.cancelled() and (error := batches.exception()) is not None:
                logger.error("the engine process failed: %r", error)
            await self._end_process()
            logger.error("the engine process ended with code %s; restarting it", process.returncode)
            self._fail_all("the engine process died; it is being restarted")
            process = await self._respawn()
            self._ready = True

    async def _compute_batches(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        while True:
            await self._arrival.wait()
            self._computing = self._next_batch()
            if not self._computing:
                continue
            began = asyncio.get_running_loop().time()
            process.stdin.write(encode_prompts([one.prompt for one in self._computing]))
            await process.stdin.drain()
            try:
                async with asyncio.timeout(HUNG_S):
                    scores = await _read(process)
            except ProbeError as error:
                logger.error("%s", error)
                _fail(self._computing, f"the engine failed on these prompts: {error}")
                continue
            assert scores is not None
            for i, one in enumerate(self._computing):
                if not np.isfinite(scores.success[i]).all():
                    _fail([one], NOT_FINITE)
                elif not one.scores.done():
                    one.scores.set_result(scores[i : i + 1])
            self._on_batch(_report(self._computing, began))

    def _next_batch(self) -> list[_Waiting]:
        """Take from the queue what still matters, oldest first."""
        now = asyncio.get_running_loop().time()
        batch: list[_Waiting] = []
        tokens = 0
        while self._queue and len(batch) < BATCH_PROMPTS:
            first = self._queue[0]
            wanted = not first.scores.done() and first.deadline > now
            if wanted and batch and tokens + first.tokens > BATCH_TOKENS:
                break
            self._queue.popleft()
            self._tokens -= first.tokens
            if wanted:
                batch.append(first)
                tokens += first.tokens
        if not self._queue:
            self._arrival.clear()
        return batch

    def _fail_all(self, message: str) -> None:
        _fail([*self._computing, *self._queue], message)
        self._computing = []
        self._queue.clear()
        self._tokens = 0
        self._arrival.clear()

    async def _respawn(self) -> asyncio.subprocess.Process:
        backoff_s = FIRST_BACKOFF_S
        while True:
            await asyncio.sleep(backoff_s)
            try:
                return await self._spawn()
            except (ProbeError, OSError) as error:
                logger.error("cannot restart the engine: %s", error)
                await self._end_process()
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    async def _spawn(self) -> asyncio.subprocess.Process:
        """A child that has loaded its probe models.

        Raises:
            ProbeError: it could not.
        """
        # A session of its own: Ctrl-C reaches the gateway, which ends the child when requests are done.
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "probes.engine.worker",
            *self._arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # Threads that spin while they wait stall each other where cores are shared, with vLLM say.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ},
            limit=LINE_BYTES,
            start_new_session=True,
        )
        try:
            await _read(process)
        except ConnectionError as error:
            code = await process.wait()
            raise ProbeError(
                f"the engine process ended with code {code} while it loaded the probe models; see what it wrote above"
            ) from error
        return process

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.wait()


async def _read(process: asyncio.subprocess.Process) -> Scores | None:
    """The child's next answer.

    Raises:
        ConnectionError: it died.
        ProbeError: it reports an error.
    """
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line.endswith(b"\n"):
        raise ConnectionError("the engine process ended")
    return decode_scores(line)


def _fail(waiting: Sequence[_Waiting], message: str) -> None:
    for one in waiting:
        if not one.scores.done():
            one.scores.set_exception(EngineUnavailableError(message))


def _report(batch: Sequence[_Waiting], began: float) -> BatchReport:
    passes = len(batch[0].prompt.token_ids)
    return BatchReport(
        prompts=len(batch),
        tokens=sum(one.tokens for one in batch),
        padding_tokens=sum(padding_tokens([len(one.prompt.token_ids[i]) for one in batch]) for i in range(passes)),
        queue_s=began - batch[0].arrived,
    )
