"""What gateways and an engine say to each other: bounded frames over a Unix or TCP socket.

A frame is a header (uint32 payload bytes, uint8 kind, uint32 number of the request) and a payload of little-endian
arrays; `Kind` says which. The engine speaks first. Clocks differ between machines, so deadlines travel as what is left.
"""

import asyncio
import hashlib
import hmac
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import Literal, cast

import numpy as np
from numpy.typing import NDArray

from probes.base import FloatArray
from probes.engine.base import Prompt, Scores

VERSION = 2
MAX_FRAME_BYTES = 2**25
"""Some eight million tokens."""
MAX_FIRST_FRAME_BYTES = 2**16
"""Until the other side has shown who it is."""

_HEADER = struct.Struct("<IBI")
_PROMPTS = struct.Struct("<dII")
_SCORES = struct.Struct("<II")
_REPORT = struct.Struct("<IIII")


class WireError(Exception):
    """The other side sent what is no frame of ours; the connection is of no more use."""


class Kind(IntEnum):
    HELLO = 1
    """Engine: version, one byte; a nonce."""
    JOIN = 2
    """Gateway: proof that it knows the secret, 32 bytes; hash of the probes that it expects, 32 bytes."""
    WELCOME = 3
    """Engine: joined; empty."""
    SCORE = 4
    """Gateway: seconds left, prompts."""
    CANCEL = 5
    """Gateway: nobody waits for that request any more; empty."""
    SCORES = 6
    """Engine: the answer."""
    ERROR = 7
    """Engine: why there is none, UTF-8; number 0: why the gateway may not join."""
    REPORT = 8
    """Engine: what it has computed and looked up since the last report to anyone."""


Lookup = Literal["hit", "shared", "miss"]
LOOKUPS: tuple[Lookup, ...] = ("hit", "shared", "miss")
"""A prompt's scores were at hand; were being computed for somebody else; had to be computed."""


@dataclass(frozen=True)
class BatchReport:
    """One computed micro-batch."""

    prompts: int
    tokens: int
    """Computed, over all passes, padding left out."""
    padding_tokens: int
    """That went through the probe models; what attention alone fills up on a GPU is not counted."""
    reused_tokens: int
    """Not computed, since earlier prompts begin with them."""
    queue_s: float
    """The longest wait of its prompts."""


@dataclass(frozen=True)
class Report:
    batches: tuple[BatchReport, ...]
    lookups: tuple[int, int, int]
    """How many prompts, in the order of `LOOKUPS`."""


class FrameProtocol(asyncio.Protocol):
    """One side of a connection: bytes to frames and back. What breaks the rules loses the connection, nothing else."""

    transport: asyncio.Transport
    max_bytes = MAX_FIRST_FRAME_BYTES

    def __init__(self) -> None:
        self._buffer = bytearray()

    def frame(self, kind: Kind, number: int, payload: bytes) -> None:
        """
        Raises:
            WireError: the payload is none of this kind's.
        """
        raise NotImplementedError

    def send(self, kind: Kind, number: int = 0, payload: bytes = b"") -> None:
        self.transport.write(_HEADER.pack(len(payload), kind, number) + payload)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one by what it can, not by its class

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            while len(self._buffer) >= _HEADER.size and not self.transport.is_closing():
                size, kind, number = _HEADER.unpack_from(self._buffer)
                if size > self.max_bytes:
                    raise WireError(f"a frame of {size} bytes, over the bound of {self.max_bytes}")
                end = _HEADER.size + size
                if len(self._buffer) < end:
                    return
                payload = bytes(self._buffer[_HEADER.size : end])
                del self._buffer[:end]
                self.frame(_kind(kind), number, payload)
        except WireError as error:
            self.broken(error)
            self.transport.abort()

    def broken(self, error: WireError) -> None:
        """Called before a connection is given up."""


def encode_prompts(prompts: Sequence[Prompt], left_s: float) -> bytes:
    """
    Raises:
        ValueError: a token id is no int32, or all of it is more than a frame holds.
    """
    texts = [prompt.text.encode("utf-8", "replace") for prompt in prompts]
    passes = len(prompts[0].token_ids) if prompts else 0
    lengths = [
        [*map(len, prompt.token_ids), len(text)] for prompt, text in zip(prompts, texts, strict=True)
    ]  # (n, passes + 1)
    try:
        token_ids = np.array([*chain.from_iterable(chain.from_iterable(one.token_ids for one in prompts))], "<i4")
    except OverflowError as error:
        raise ValueError("token ids must be whole numbers below 2**31") from error
    head = _PROMPTS.pack(left_s, len(prompts), passes)
    payload = b"".join((head, np.array(lengths, "<i4").tobytes(), token_ids.tobytes(), *texts))
    if len(payload) > MAX_FRAME_BYTES:
        raise ValueError(f"{len(prompts)} prompts make {len(payload)} bytes; {MAX_FRAME_BYTES} go to an engine at once")
    return payload


def decode_prompts(payload: bytes) -> tuple[list[Prompt], float]:
    """Prompts and the seconds left.

    Raises:
        WireError: that is not what the payload holds.
    """
    try:
        left_s, n, passes = _PROMPTS.unpack_from(payload)
        if math.isnan(left_s):
            raise ValueError("no deadline")
        lengths = _array(payload, _PROMPTS.size, n * (passes + 1)).reshape(n, passes + 1)
        at = _PROMPTS.size + 4 * lengths.size
        token_ids = _array(payload, at, int(lengths[:, :-1].sum(dtype=np.int64))).tolist()
        texts = payload[at + 4 * len(token_ids) :]
        if (lengths < 0).any() or len(texts) != lengths[:, -1].sum(dtype=np.int64):
            raise ValueError("lengths do not add up")
        prompts, ids_at, text_at = [], 0, 0
        for row in lengths.tolist():
            *sizes, text_size = row
            parts = []
            for size in sizes:
                parts.append(tuple(token_ids[ids_at : ids_at + size]))
                ids_at += size
            prompts.append(Prompt(tuple(parts), texts[text_at : text_at + text_size].decode()))
            text_at += text_size
    except (ValueError, struct.error, MemoryError, OverflowError) as error:
        raise WireError(f"prompts that cannot be read: {error}") from error
    return prompts, left_s


def encode_scores(scores: Scores) -> bytes:
    n, probes = scores.success.shape
    fields = (scores.success, scores.output_tokens, scores.activation_percentile)
    return _SCORES.pack(n, probes) + b"".join(np.ascontiguousarray(field, "<f8").tobytes() for field in fields)


def decode_scores(payload: bytes) -> Scores:
    """
    Raises:
        WireError: the payload holds no scores.
    """
    try:
        n, probes = _SCORES.unpack_from(payload)
        fields: FloatArray = np.frombuffer(payload, "<f8", offset=_SCORES.size).reshape(3, n, probes)
    except (ValueError, struct.error) as error:
        raise WireError(f"scores that cannot be read: {error}") from error
    return Scores(*fields)


def encode_report(report: Report) -> bytes:
    batches = [(one.prompts, one.tokens, one.padding_tokens, one.reused_tokens, one.queue_s) for one in report.batches]
    return _REPORT.pack(len(batches), *report.lookups) + np.array(batches, "<f8").tobytes()


def decode_report(payload: bytes) -> Report:
    """
    Raises:
        WireError: the payload holds no report.
    """
    try:
        n, *lookups = _REPORT.unpack_from(payload)
        rows = np.frombuffer(payload, "<f8", offset=_REPORT.size).reshape(n, 5).tolist()
        batches = tuple(
            BatchReport(int(prompts), int(tokens), int(padding), int(reused), queue_s)
            for prompts, tokens, padding, reused, queue_s in rows
        )
    except (ValueError, struct.error, OverflowError) as error:  # int() of what is no number, or infinite
        raise WireError(f"a report that cannot be read: {error}") from error
    return Report(batches, (lookups[0], lookups[1], lookups[2]))


def proof(secret: bytes, nonce: bytes) -> bytes:
    """Shows that one knows the secret without saying it: HMAC-SHA256, 32 bytes."""
    return hmac.digest(secret, nonce, hashlib.sha256)


def _kind(number: int) -> Kind:
    try:
        return Kind(number)
    except ValueError as error:
        raise WireError(f"a frame of unknown kind {number}") from error


def _array(payload: bytes, at: int, count: int) -> NDArray[np.int32]:
    if count < 0 or at + 4 * count > len(payload):
        raise ValueError("shorter than it says")
    return np.frombuffer(payload, "<i4", count, at)
