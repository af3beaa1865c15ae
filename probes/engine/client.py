"""An engine at a socket, seen from a gateway. Satisfies `Engine`; imports no torch."""

import asyncio
import itertools
import logging
import math
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.engine.address import connect
from probes.engine.base import CLOSED, TOO_LATE, EngineUnavailableError, Prompt, Scores
from probes.engine.served import served_sha256
from probes.engine.wire import (
    MAX_FRAME_BYTES,
    VERSION,
    FrameProtocol,
    Kind,
    Report,
    WireError,
    decode_report,
    decode_scores,
    encode_prompts,
    proof,
)

logger = logging.getLogger(__name__)

JOIN_S = 30.0
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
"""Seconds, seconds, times: so is noticed that a machine is gone."""


class SocketEngine:
    """Joins an engine, again and again should it go.

    Args:
        url: tcp://host:port or unix:///path.
        artifacts: the probes that it must serve, in the order of the scores.
        secret: what the engine asks for; empty: nothing.
        on_report: called with what the engine says of its work.
    """

    def __init__(
        self,
        url: str,
        artifacts: Sequence[Artifact],
        *,
        secret: bytes = b"",
        on_report: Callable[[Report], None] = lambda report: None,
    ) -> None:
        self.url = url
        self._probes = len(artifacts)
        self._served_sha256 = served_sha256(artifacts)
        self._secret = secret
        self._on_report = on_report
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._gone = f"the engine at {url} is not there; it is being restarted, or joined again"

    @property
    def ready(self) -> bool:
        return self._connection is not None

    async def start(self) -> None:
        """Join the engine. Where nobody answers, returns all the same, not ready, and goes on trying.

        Raises:
            ProbeError: the engine refuses us, since it serves other probes or knows another secret.
        """
        try:
            self._connection = await self._join()
        except OSError as error:
            logger.warning("no engine answers at %s (%r): not ready until one does", self.url, error)
        self._task = asyncio.create_task(self._stay(self._connection))

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        if connection is not None:
            connection.fail(CLOSED)
            connection.transport.abort()

    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """See `Engine.score`."""
        if not prompts:
            return Scores(*np.empty((3, 0, self._probes)))
        connection = self._connection
        if connection is None:
            raise EngineUnavailableError(self._gone)
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise EngineUnavailableError(TOO_LATE)
        try:
            payload = encode_prompts(prompts, left_s)
        except ValueError as error:
            raise EngineUnavailableError(str(error)) from error
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                return await connection.request(payload)
        except TimeoutError as error:
            raise EngineUnavailableError(TOO_LATE) from error

    async def _stay(self, connection: "_Connection | None") -> None:
        """Join whenever there is no connection; ends when cancelled."""
        backoff_s = FIRST_BACKOFF_S
        while True:
            if connection is not None:
                self._connection = connection
                await connection.lost.wait()
                self._connection = connection = None
                logger.error("the engine at %s is gone; joining it again", self.url)
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            try:
                connection = await self._join()
                logger.info("joined the engine at %s", self.url)
            except ProbeError as error:
                logger.error("%s", error)
            except OSError as error:
                logger.debug("no engine answers at %s: %r", self.url, error)

    async def _join(self) -> "_Connection":
        """
        Raises:
            OSError: nobody answers.
            ProbeError: the engine refuses us.
        """
        async with asyncio.timeout(JOIN_S):  # TimeoutError is an OSError
            connection = await connect(
                self.url, lambda: _Connection(self._secret, self._served_sha256, self._gone, self._on_report)
            )
            try:
                await connection.joined
            except BaseException as error:
                connection.transport.abort()
                if isinstance(error, ProbeError):
                    raise ProbeError(f"the engine at {self.url} refuses this gateway: {error}") from error
                raise
        return connection


class _Connection(FrameProtocol):
    def __init__(self, secret: bytes, served_sha256: bytes, gone: str, on_report: Callable[[Report], None]) -> None:
        super().__init__()
        self._secret = secret
        self._served_sha256 = served_sha256
        self._gone = gone
        self._on_report = on_report
        self._numbers = itertools.count(1)
        self._requests: dict[int, asyncio.Future[Scores]] = {}
        self.joined: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()

    async def request(self, payload: bytes) -> Scores:
        """
        Raises:
            EngineUnavailableError: the engine says why not, or is gone, or does not read.
        """
        if self.lost.is_set():
            raise EngineUnavailableError(self._gone)
        if self.transport.get_write_buffer_size() > MAX_FRAME_BYTES:
            raise EngineUnavailableError("the engine does not read what it is sent")
        number = next(self._numbers) % 2**32
        scores: asyncio.Future[Scores] = asyncio.get_running_loop().create_future()
        self._requests[number] = scores
        self.send(Kind.SCORE, number, payload)
        try:
            return await scores
        finally:
            if self._requests.pop(number, None) is not None and not self.transport.is_closing():
                self.send(Kind.CANCEL, number)
            del scores  # what it failed with refers to this frame: they would keep all of the request, and each other

    def fail(self, message: str) -> None:
        """End all requests."""
        for scores in self._requests.values():
            if not scores.done():
                scores.set_exception(EngineUnavailableError(message))
        self._requests.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEPALIVE:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.set()
        self.fail(self._gone)
        if not self.joined.done():
            self.joined.set_exception(ConnectionResetError("it hung up"))

    def broken(self, error: WireError) -> None:
        logger.error("the engine's connection was closed: it sent %s", error)

    def frame(self, kind: Kind, number: int, payload: bytes) -> None:
        if not self.joined.done():
            self._join(kind, payload)
        elif kind is Kind.SCORES:
            self._settle(number, decode_scores(payload))
        elif kind is Kind.ERROR:
            self._settle(number, EngineUnavailableError(payload.decode("utf-8", "replace")))
        elif kind is Kind.REPORT:
            self._on_report(decode_report(payload))
        else:
            raise WireError(f"a frame {kind.name} out of place")

    def _join(self, kind: Kind, payload: bytes) -> None:
        if kind is Kind.HELLO and payload[:1] == bytes([VERSION]):
            self.send(Kind.JOIN, payload=proof(self._secret, payload[1:]) + self._served_sha256)
        elif kind is Kind.WELCOME:
            self.max_bytes = MAX_FRAME_BYTES
            self.joined.set_result(None)
        elif kind is Kind.HELLO:
            self.joined.set_exception(ProbeError("it is of another version: install the same on both machines"))
        elif kind is Kind.ERROR:
            self.joined.set_exception(ProbeError(payload.decode("utf-8", "replace")))
        else:
            raise WireError(f"a frame {kind.name} out of place")

    def _settle(self, number: int, answer: Scores | EngineUnavailableError) -> None:
        scores = self._requests.pop(number, None)
        if scores is None or scores.done():  # nobody waits any more
            return
        if isinstance(answer, Scores):
            scores.set_result(answer)
        else:
            scores.set_exception(answer)
