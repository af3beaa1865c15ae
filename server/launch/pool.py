"""Starts, watches and stops the vLLM servers of a pool on this machine.

async with launched(load("pool.yaml")) as settings:      # every `launch` has become a `url`
    ...
"""

import asyncio
import logging
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx

from server.commands.guard import Guard
from server.config import Settings
from server.launch.vllm_fork import Family, ForkedServer, can_fork
from server.launch.vllm_server import (
    PORT_TAKEN,
    LaunchError,
    ServerKey,
    VllmServer,
    explain,
    free_port,
    plan,
    require_vllm,
)

__all__ = ["LaunchError", "launched"]

logger = logging.getLogger(__name__)

START_TIMEOUT_S = 1800.0
"""Large models are read, and perhaps downloaded first, for a long time."""
FORK_TIMEOUT_S = 120.0
PROGRESS_S = 15.0
POLL_S = 0.2
FIRST_BACKOFF_S, MAX_BACKOFF_S = 1.0, 60.0
PORT_ATTEMPTS = 3
LOG_BYTES = 2**18


@asynccontextmanager
async def launched(
    settings: Settings, log_dir: Path | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> AsyncIterator[Settings]:
    """Run the pool's `launch` servers; one that dies is started again on its port.

    Args:
        settings: as configured.
        log_dir: where each server's log goes. None: a fresh folder, which stays only where a server failed.
        start_timeout_s: for each server to become healthy.

    Yields:
        The settings in which each launched replica has a `url`. All of these servers are healthy.

    Raises:
        ConfigError: a model's path leads nowhere, a port is taken, or an argument is PIKA's to set.
        LaunchError: vLLM is not installed, or a server does not start.
    """
    folder = Path(tempfile.mkdtemp(prefix="pika-logs-")) if log_dir is None else log_dir
    folder.mkdir(parents=True, exist_ok=True)
    servers: dict[ServerKey, _Server] = {}
    watchers: list[asyncio.Task[None]] = []
    try:
        servers = {key: _Server(spec, start_timeout_s) for key, spec in plan(settings, folder).items()}
        if servers:
            require_vllm()
            logger.info("starting %d vLLM servers, logs in %s", len(servers), folder)
            await _start_all(list(servers.values()), folder)
        watchers = [asyncio.create_task(server.keep_running()) for server in servers.values()]
        yield _with_urls(settings, {key: server.spec.url for key, server in servers.items()})
    finally:
        for watcher in watchers:
            watcher.cancel()
        await asyncio.gather(*watchers, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in servers.values()))
        if log_dir is None and not any(server.failed for server in servers.values()):
            shutil.rmtree(folder, ignore_errors=True)


async def _start_all(servers: Sequence["_Server"], folder: Path) -> None:
    """
    Raises:
        LaunchError: one of them does not start.
    """
    if can_fork([server.spec for server in servers]):
        with (folder / "fork.log").open("ab") as log:
            family = await Family.start([server.spec for server in servers], log)
        for server in servers:
            server.run = family.server(server.spec.name)
        try:
            await _together(server.wait_healthy(min(server.start_timeout_s, FORK_TIMEOUT_S)) for server in servers)
            return
        except LaunchError as error:
            # It may be the forking that failed, which is an optimisation only.
            logger.debug("%s", error)
            logger.info("starting each server on its own instead")
            await family.guard.stop()
    await _together(server.start() for server in servers)


async def _together(starts: Iterable[Coroutine[None, None, None]]) -> None:
    """All at once; the first failure cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for start in starts:
                tasks.create_task(start)
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


def _with_urls(settings: Settings, urls: Mapping[ServerKey, str]) -> Settings:
    models = dict(settings.models)
    for (name, index), url in urls.items():
        replicas = list(models[name].replicas)
        replicas[index] = replicas[index].model_copy(update={"url": f"{url}/v1", "launch": None})
        models[name] = models[name].model_copy(update={"replicas": replicas})
    return settings.model_copy(update={"models": models})


class _Server:
    """One server's life: started, watched, started again, stopped."""

    def __init__(self, spec: VllmServer, start_timeout_s: float) -> None:
        self.spec = spec
        self.start_timeout_s = start_timeout_s
        self.failed = False
        self.run: Guard | ForkedServer | None = None
        self.log_start = 0

    async def start(self) -> None:
        """Start it and wait until it is healthy.

        Raises:
            LaunchError: it ended, or was not healthy in time.
        """
        for attempts_left in reversed(range(PORT_ATTEMPTS)):
            self.spec.log.parent.mkdir(parents=True, exist_ok=True)
            with self.spec.log.open("ab") as log:
                self.log_start = log.tell()
                self.run = await Guard.start(self.spec.command, self.spec.env, log)
            try:
                return await self.wait_healthy(self.start_timeout_s)
            except LaunchError:
                await self.stop()
                # Between our look for a free port and vLLM's start somebody else may have taken it.
                if self.spec.port_is_fixed or not attempts_left or PORT_TAKEN not in self._log().lower():
                    raise
                self.spec = replace(self.spec, port=free_port())

    async def wait_healthy(self, timeout_s: float) -> None:
        """
        Raises:
            LaunchError: it ended, or was not healthy in time.
        """
        assert self.run is not None
        started = time.monotonic()
        ended = asyncio.create_task(self.run.wait())
        try:
            async with httpx.AsyncClient(base_url=self.spec.url, trust_env=False, timeout=5) as client:
                while (seconds := time.monotonic() - started) < timeout_s:
                    if await _is_healthy(client) and not ended.done():
                        logger.info("%s: ready after %.0f s at %s", self.spec.name, seconds, self.spec.url)
                        # From now on its clients know the port.
                        self.spec = replace(self.spec, port_is_fixed=True)
                        return
                    if ended.done():
                        raise self._failure(f"vLLM left with exit code {ended.result()} after {seconds:.0f} s")
                    await asyncio.wait([ended], timeout=POLL_S)
                    if (seconds + POLL_S) // PROGRESS_S > seconds // PROGRESS_S:
                        logger.info("%s: starting, %.0f s", self.spec.name, seconds)
            raise self._failure(f"vLLM was not healthy within {timeout_s:.0f} s")
        finally:
            ended.cancel()

    async def keep_running(self) -> None:
        """Start it again whenever it ends, for ever. vLLM leaves with exit code 0 when its engine is killed, so the
        code says nothing."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            healthy_since = time.monotonic()
            assert self.run is not None
            code = await self.run.wait()
            if time.monotonic() - healthy_since > MAX_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            logger.error(
                "%s", self._failure(f"vLLM left with exit code {code}; starting it again in {backoff_s:.0f} s")
            )
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            try:
                await self.start()
            except (LaunchError, OSError) as error:
                logger.error("%s", error)

    def _failure(self, what: str) -> LaunchError:
        self.failed = True
        return LaunchError(explain(self.spec, self._log(), what))

    def _log(self) -> str:
        """What it logged since its last start, of much the end; empty where somebody cleaned up."""
        try:
            with self.spec.log.open("rb") as log:
                log.seek(max(self.log_start, log.seek(0, os.SEEK_END) - LOG_BYTES))
                return log.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    async def stop(self) -> None:
        """Returns when it has ended."""
        if self.run is not None:
            await self.run.stop()


async def _is_healthy(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/health")).is_success
    except httpx.TransportError:
        return False
