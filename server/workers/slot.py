"""One worker's place beside others, and the process that is in it now, as its parent sees it."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from probes.base import ProbeError
from server.workers.orders import MAX_LINE_BYTES, decode, encode

ANSWER_S = 120.0
"""Who takes longer to do as told is taken for dead."""
CHECK_S, HUNG_S = 20.0, 30.0
"""How often a worker is asked whether it listens to us, and when it is taken to hang if it does not say so."""


class WorkerError(ProbeError):
    """A worker cannot do what it was told, or has ended."""


class Slot:
    """
    Args:
        command: what runs in it.
        descriptor: of the listening socket that it inherits.
        on_reload: called where the process asks for a reload.
    """

    def __init__(
        self, number: int, command: Sequence[str], descriptor: int, on_reload: Callable[["Slot"], None] = lambda _: None
    ) -> None:
        self.number = number
        self._command = command
        self._descriptor = descriptor
        self._on_reload = on_reload
        self._process: asyncio.subprocess.Process | None = None
        self._answers: asyncio.Queue[dict[str, Any]]
        self._reader: asyncio.Task[None] | None = None
        self._uses: set[int] = set()
        """Generations that requests here may still be served by."""
        self._left = asyncio.Event()
        """Set, and replaced, whenever there are fewer."""

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self, generation: int, order: Mapping[str, Any]) -> None:
        """Start a process and return when it answers requests.

        Raises:
            WorkerError: it does not.
        """
        if self._reader is not None:
            await self._reader
        # A session of its own: Ctrl-C reaches the parent, which tells the workers.
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=[self._descriptor],
            limit=MAX_LINE_BYTES,
            start_new_session=True,
        )
        self._uses = {generation}
        self._answers = asyncio.Queue()
        self._reader = asyncio.create_task(self._read(self._process))
        try:
            await self.ask(order)
        except BaseException:
            await self.stop(0)
            raise

    async def ask(self, message: Mapping[str, Any], within_s: float = ANSWER_S) -> None:
        """Tell the process to do something, and wait until it has done so. One at a time.

        Raises:
            WorkerError: it says that it cannot, has ended, or takes too long, and is killed.
        """
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(encode(message))
            async with asyncio.timeout(within_s):
                answer = await self._answers.get()
        except (TimeoutError, ConnectionError) as error:
            await self.stop(0)
            raise WorkerError(f"worker {self.number} did not do as told within {within_s:g} s") from error
        if "error" in answer:
            raise WorkerError(answer["error"])

    async def take(self, generation: int, leaves: int) -> None:
        """Have it serve what it has prepared.

        Raises:
            WorkerError: it does not, and is killed: its successor will.
        """
        self._uses.add(generation)
        try:
            await self.ask({"do": "take", "leaves": leaves})
        except WorkerError:
            await self.stop(0)
            raise

    async def until_left(self, generation: int) -> None:
        """Until no request here is served by a generation."""
        while generation in self._uses:
            await self._left.wait()

    async def wait(self, free: asyncio.Lock) -> int:
        """Until the process has ended, or is killed since it hangs; returns its exit code.

        Args:
            free: held while somebody asks it something.
        """
        assert self._process is not None
        while True:
            try:
                async with asyncio.timeout(CHECK_S):  # wait_for may swallow a cancellation
                    return await self._process.wait()
            except TimeoutError:
                async with free:
                    with suppress(WorkerError):
                        await self.ask({"do": "nothing"}, HUNG_S)

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, after a grace period SIGKILL; returns when the process has ended."""
        process = self._process
        if process is None:
            return
        with suppress(ProcessLookupError):
            if grace_s > 0:
                process.terminate()
                with suppress(TimeoutError):
                    async with asyncio.timeout(grace_s):
                        await process.wait()
            if process.returncode is None:
                process.kill()
        await process.wait()

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """What the process says, to its end."""
        assert process.stdout is not None
        async for line in process.stdout:
            message = decode(line)
            if "left" in message:
                self._leave({message["left"]})
            elif "reload" in message:
                self._on_reload(self)
            else:
                self._answers.put_nowait(message)
        code = await process.wait()
        self._answers.put_nowait({"error": f"worker {self.number} ended with code {code}"})
        self._leave(set(self._uses))

    def _leave(self, generations: set[int]) -> None:
        self._uses -= generations
        self._left.set()
        self._left = asyncio.Event()
