"""Several gateway processes behind one port: their parent holds the socket and the one engine, and answers nobody.

A worker that dies is replaced, and the connections that wait at the socket are taken by the others. What all of them
serve changes at once or not at all: each prepares it, and only when all have done so each takes it.
"""

import asyncio
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probes.engine.process import EngineProcess
from server.config import Settings
from server.engine import options
from server.gateway import LAST_WORDS_S, Read
from server.http.listen import url_of
from server.live import Order, Parts, build, described, log_refusal, warn_of_restart
from server.workers.acceptor import AWAY, Counts
from server.workers.orders import encode_order
from server.workers.shared_metrics import forget_gauges, shared_folder
from server.workers.slot import Slot, WorkerError

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S, MAX_BACKOFF_S = 0.1, 30.0
STEADY_S = 60.0
"""Who has lived so long is replaced at once again."""


@dataclass(frozen=True)
class Generation:
    """What the workers serve between two reloads."""

    number: int
    settings: Settings
    order: dict[str, Any]
    engine: EngineProcess | None
    described: str

    @classmethod
    async def open(cls, number: int, settings: Settings) -> "Generation":
        """Check it all, once for all workers, and start the engine that they share.

        Raises:
            ConfigError, ProbeError: it does not fit together.
        """
        parts: Parts = await asyncio.to_thread(build, Order(settings))
        artifacts = {arm.name: arm.artifact for arm in parts.pool.arms if arm.artifact is not None}
        engine = None
        if artifacts and settings.engine.kind == "process":
            engine = EngineProcess(list(artifacts.values()), options(settings.engine))
            await engine.start()
        order = encode_order(settings, artifacts, None if engine is None else engine.url)
        return cls(number, settings, order, engine, described(parts.pool))

    async def close(self) -> None:
        if self.engine is not None:
            await self.engine.close()


async def run_workers(read: Read, sock: socket.socket, count: int, log_options: Sequence[str]) -> None:
    """Serve with `count` workers until cancelled, then have them drain. SIGHUP reloads.

    Raises:
        ConfigError, ProbeError: before anything is served.
    """
    with shared_folder() as folder:
        await _Parent(read, sock, count, folder, log_options).run()


class _Parent:
    def __init__(self, read: Read, sock: socket.socket, count: int, folder: Path, log_options: Sequence[str]) -> None:
        self.read = read
        self.sock = sock
        self.folder = folder
        command = [sys.executable, "-P", "-m", "server.workers.worker"]
        self.slots = [
            Slot(
                slot,
                [*command, *map(str, (slot, count, sock.fileno(), folder)), *log_options],
                sock.fileno(),
                self._reload_later,
            )
            for slot in range(count)
        ]
        self.counts = Counts(folder, count)
        self.changing = asyncio.Lock()
        """Held while a worker starts and while what they serve changes: one after the other."""
        self.generations: list[Generation] = []
        """The last one is served; earlier ones until the last request that began with them has ended."""
        self.reloads: set[asyncio.Task[None]] = set()

    @property
    def current(self) -> Generation:
        return self.generations[-1]

    @property
    def there(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.alive]

    async def run(self) -> None:
        self.generations.append(await Generation.open(0, self.read()))
        keepers: list[asyncio.Task[None]] = []
        try:
            await _all(slot.start(0, self.current.order) for slot in self.slots)
            keepers = [asyncio.create_task(self._keep(slot)) for slot in self.slots]
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_later)
            logger.info("routing: %s", self.current.described)
            logger.info("gateway ready on %s", url_of(self.sock), extra={"fields": {"workers": len(self.slots)}})
            await asyncio.gather(*keepers)
        finally:
            for task in (*keepers, *self.reloads):
                task.cancel()
            await asyncio.gather(*keepers, *self.reloads, return_exceptions=True)
            await self._end()

    async def _keep(self, slot: Slot) -> None:
        """Put another process into a slot whenever one ends, for ever."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            began = time.monotonic()
            code = await slot.wait(self.changing)
            if time.monotonic() - began > STEADY_S:
                backoff_s = FIRST_BACKOFF_S
            forget_gauges(self.folder, slot.number)
            self.counts.tell(slot.number, AWAY)
            logger.error("worker %d ended with code %d; starting another in %.1f s", slot.number, code, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            try:
                async with self.changing:
                    await slot.start(self.current.number, self.current.order)
            except (WorkerError, OSError) as error:
                logger.error("worker %d does not start: %s", slot.number, error)

    def _reload_later(self, asked_by: Slot | None = None) -> None:
        task = asyncio.create_task(self._reload(asked_by))
        self.reloads.add(task)
        task.add_done_callback(self.reloads.discard)

    async def _reload(self, asked_by: Slot | None) -> None:
        """Have all workers serve what the configuration says now, or none where anything fails a check.

        Args:
            asked_by: whose worker is to be told how it went.
        """
        async with self.changing:
            before = self.current
            try:
                following = await Generation.open(before.number + 1, await asyncio.to_thread(self.read))
            except Exception as error:  # whatever it is, the operator shall read of it
                return await self._refuse(error, asked_by)
            there = self.there
            self.generations.insert(-1, following)
            logger.info("reload: nothing wrong here, now %d workers prepare it", len(there))
            try:
                await _all(slot.ask({"do": "prepare", **following.order}) for slot in there)
            except WorkerError as error:
                await _each(slot.ask({"do": "drop"}) for slot in there)
                await self._close(following)
                return await self._refuse(error, asked_by)
            warn_of_restart(before.settings, following.settings)
            self.generations.remove(following)
            self.generations.append(following)
            await _each(slot.take(following.number, leaves=before.number) for slot in there)
            await self._count("done")
            await self._tell(asked_by, None)
        logger.info("reloaded: %s", following.described)
        await asyncio.gather(*(slot.until_left(before.number) for slot in there))
        await self._close(before)

    async def _refuse(self, error: Exception, asked_by: Slot | None) -> None:
        refusal = log_refusal(error)
        await self._count("refused")
        await self._tell(asked_by, refusal)

    async def _tell(self, slot: Slot | None, refusal: str | None) -> None:
        if slot is not None and slot.alive:
            await _each([slot.ask({"do": "reloaded", "refusal": refusal})])

    async def _count(self, result: str) -> None:
        """In one worker's metrics: all of them are added up."""
        await _each(slot.ask({"do": "count", "result": result}) for slot in self.there[:1])

    async def _close(self, generation: Generation) -> None:
        await generation.close()
        self.generations.remove(generation)

    async def _end(self) -> None:
        """Workers drain, then the engine ends."""
        self.sock.close()
        drain_s = self.current.settings.server.drain_s
        logger.info("draining: %d workers have %g s to end", len(self.there), drain_s)
        await asyncio.gather(*(slot.stop(drain_s + 2 * LAST_WORDS_S) for slot in self.slots))
        await asyncio.gather(*(generation.close() for generation in self.generations))
        logger.info("drained")


async def _all(asked: Iterable[Awaitable[None]]) -> None:
    """Wait for every one of them.

    Raises:
        WorkerError: the first that one of them raised.
    """
    for outcome in await asyncio.gather(*asked, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _each(asked: Iterable[Awaitable[None]]) -> None:
    """Wait for every one of them, whether it succeeds or not: who fails is replaced."""
    await asyncio.gather(*asked, return_exceptions=True)
