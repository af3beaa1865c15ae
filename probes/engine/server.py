"""An engine's side of its sockets: who may join, and whose prompts are whose. Many gateways may share an engine."""

import asyncio
import hmac
import logging
import secrets
import socket
from collections.abc import Sequence
from typing import Protocol

from probes.engine.base import EngineUnavailableError, Prompt, Scores
from probes.engine.wire import (
    LOOKUPS,
    MAX_FRAME_BYTES,
    VERSION,
    BatchReport,
    FrameProtocol,
    Kind,
    Lookup,
    Report,
    WireError,
    decode_prompts,
    encode_report,
    encode_scores,
    proof,
)

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
JOIN_S = 5.0
"""Who has not joined by then is sent away."""
REPORT_S = 0.2
"""Reports are gathered for so long."""
NONCE_BYTES = 16


class Scorer(Protocol):
    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores: ...


class EngineServer:
    """Answers gateways with what `engine` computes.

    Args:
        served_sha256: which probes these are, see `probes.engine.served`.
        secret: what gateways must know; empty: nothing.
    """

    def __init__(self, engine: Scorer, passes: int, served_sha256: bytes, secret: bytes = b"") -> None:
        self.engine = engine
        self.passes = passes
        self.served_sha256 = served_sha256
        self.secret = secret
        self.connections: dict[_Connection, None] = {}
        self._batches: list[BatchReport] = []
        self._lookups = dict.fromkeys(LOOKUPS, 0)
        self._flush: asyncio.TimerHandle | None = None
        self._server: asyncio.Server | None = None

    async def listen(self, sock: socket.socket) -> None:
        """Take connections at a bound socket from now on."""
        loop = asyncio.get_running_loop()
        make = loop.create_unix_server if sock.family == socket.AF_UNIX else loop.create_server
        self._server = await make(lambda: _Connection(self), sock=sock)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._flush is not None:
            self._flush.cancel()
            self._report()
        for connection in list(self.connections):
            connection.transport.close()
        await asyncio.sleep(0)

    def batch(self, report: BatchReport) -> None:
        self._batches.append(report)
        self._flush_later()

    def lookup(self, found: Lookup) -> None:
        self._lookups[found] += 1
        self._flush_later()

    def _flush_later(self) -> None:
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(REPORT_S, self._report)

    def _report(self) -> None:
        """Tell one gateway, so that sums over all of them are right."""
        self._flush = None
        report = Report(tuple(self._batches), (self._lookups["hit"], self._lookups["shared"], self._lookups["miss"]))
        self._batches.clear()
        self._lookups = dict.fromkeys(LOOKUPS, 0)
        for connection in self.connections:
            if connection.joined:
                connection.send(Kind.REPORT, payload=encode_report(report))
                return


class _Connection(FrameProtocol):
    def __init__(self, server: EngineServer) -> None:
        super().__init__()
        self._server = server
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._join_by: asyncio.TimerHandle
        self.joined = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            logger.warning("a connection was refused: %d are open", MAX_CONNECTIONS)
            self.transport.abort()
            return
        self._server.connections[self] = None
        self._join_by = asyncio.get_running_loop().call_later(JOIN_S, self.transport.abort)
        self.send(Kind.HELLO, payload=bytes([VERSION]) + self._nonce)

    def connection_lost(self, error: Exception | None) -> None:
        if self in self._server.connections:
            del self._server.connections[self]
            self._join_by.cancel()
        for task in self._requests.values():
            task.cancel()

    # Who does not read its answers is not listened to either, so that they cannot pile up.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def broken(self, error: WireError) -> None:
        logger.warning("a gateway's connection was closed: it sent %s", error)

    def frame(self, kind: Kind, number: int, payload: bytes) -> None:
        if kind is Kind.JOIN and not self.joined:
            self._join(payload)
        elif kind is Kind.SCORE and self.joined:
            self._score(number, payload)
        elif kind is Kind.CANCEL and self.joined:
            if number in self._requests:
                self._requests[number].cancel()
        else:
            raise WireError(f"a frame {kind.name} out of place")

    def _join(self, payload: bytes) -> None:
        given, served_sha256 = payload[:32], payload[32:]
        if not hmac.compare_digest(given, proof(self._server.secret, self._nonce)):
            return self._refuse("the secret is not the engine's: set the same for both (engine.api_key_env)")
        if served_sha256 != self._server.served_sha256:
            return self._refuse("the engine serves other probes: give it and the gateway the same, and restart it")
        self._join_by.cancel()
        self.max_bytes = MAX_FRAME_BYTES
        self.joined = True
        self.send(Kind.WELCOME)

    def _refuse(self, message: str) -> None:
        logger.warning("a gateway was refused: %s", message)
        self.send(Kind.ERROR, payload=message.encode())
        self.transport.close()

    def _score(self, number: int, payload: bytes) -> None:
        prompts, left_s = decode_prompts(payload)
        if not prompts or any(len(prompt.token_ids) != self._server.passes for prompt in prompts):
            raise WireError(f"no prompts for the {self._server.passes} passes here")
        if number in self._requests:
            raise WireError(f"the number {number} a second time")
        deadline = asyncio.get_running_loop().time() + left_s
        self._requests[number] = task = asyncio.create_task(self._answer(number, prompts, deadline))
        task.add_done_callback(lambda _: self._requests.pop(number))

    async def _answer(self, number: int, prompts: Sequence[Prompt], deadline: float) -> None:
        try:
            scores = await self._server.engine.score(prompts, deadline)
            self.send(Kind.SCORES, number, encode_scores(scores))
        except EngineUnavailableError as error:
            self.send(Kind.ERROR, number, str(error).encode())
        except Exception as error:
            logger.exception("a request failed")
            self.send(Kind.ERROR, number, f"the engine failed: {type(error).__name__}: {error}".encode())
