"""Engines in this process, whose computing thread a test may hold; and in one of their own."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import Artifact, load_artifact, save_artifact
from probes.base import ProbeError
from probes.card import Pass
from probes.engine.address import bind
from probes.engine.base import BrokenEngineError, EngineOptions, Prompt, Scores
from probes.engine.batching import BatchingEngine
from probes.engine.local import LocalEngine
from probes.engine.process import ProcessEngine
from probes.engine.served import served_sha256
from probes.engine.server import EngineServer
from probes.engine.wire import BatchReport, Lookup
from probes.reference import load_probe
from probes.tfidf import Tfidf
from tests.support.examples import card_of


def soon(seconds: float = 30) -> float:
    return asyncio.get_running_loop().time() + seconds


def text_artifact(folder: Path, weight: float = 1.0) -> Artifact:
    """A probe that weighs the words `two` and `three`: no probe model, no torch."""
    one = np.ones(2, dtype=np.float32)
    probe = Tfidf(["three", "two"], one, np.array([weight, -weight], dtype=np.float32), one[:1])
    save_artifact(folder, card_of(probe), probe)
    return load_artifact(folder)


def text(words: int, more: str = "") -> Prompt:
    return Prompt((), "two " + "three " * words + more)


class Held:
    """Computes as `LocalEngine` does, one micro-batch whenever the test lets it; remembers them."""

    def __init__(self, artifacts: Sequence[Artifact]) -> None:
        self._engine = LocalEngine(artifacts)
        self.artifacts: Sequence[Artifact] = self._engine.artifacts
        self.passes: Sequence[Pass] = self._engine.passes
        self.padding_tokens = self.reused_tokens = 0
        self.go = threading.Event()
        self.go.set()
        self.begun = threading.Event()
        """That a micro-batch has come, be it let go or not."""
        self.computed: list[list[str]] = []

    def score(self, prompts: Sequence[Prompt], *, partial: bool = False) -> Scores:
        self.begun.set()
        if not self.go.wait(60):
            raise TimeoutError("the test never let it go")
        self.computed.append([prompt.text for prompt in prompts])
        if any("poison" in prompt.text for prompt in prompts):
            raise ValueError("poison")
        if any("breaks" in prompt.text for prompt in prompts):
            raise BrokenEngineError("device-side assert triggered")
        if any("refused" in prompt.text for prompt in prompts):
            raise ProbeError("not this one")
        return self._engine.score(prompts, partial=partial)


@asynccontextmanager
async def batching(
    held: Held,
    options: EngineOptions | None = None,
    on_batch: Callable[[BatchReport], None] = lambda report: None,
    on_lookup: Callable[[Lookup], None] = lambda found: None,
) -> AsyncIterator[BatchingEngine]:
    engine = BatchingEngine(lambda: held, options or EngineOptions(), on_batch=on_batch, on_lookup=on_lookup)
    await engine.start()
    held.computed.clear()
    try:
        yield engine
    finally:
        held.go.set()
        await engine.close()


@asynccontextmanager
async def listening(
    url: str, held: Held, secret: bytes = b"", options: EngineOptions | None = None
) -> AsyncIterator[EngineServer]:
    """The same at a socket, for gateways to join."""
    engine = BatchingEngine(
        lambda: held,
        options or EngineOptions(),
        on_batch=lambda report: server.batch(report),
        on_lookup=lambda found: server.lookup(found),
    )
    server = EngineServer(engine, len(held.passes), served_sha256(held.artifacts), secret)
    with bind(url) as sock:
        await engine.start()
        await server.listen(sock)
        try:
            yield server
        finally:
            held.go.set()
            await server.close()
            await engine.close()


def prompts(n: int, seed: int = 0) -> list[Prompt]:
    """Of mixed lengths, for one pass."""
    rng = np.random.default_rng(seed)
    return [Prompt((tuple(rng.integers(3, 600, size=size).tolist()),)) for size in rng.integers(10, 90, size=n)]


@asynccontextmanager
async def running_engine(folders: Sequence[Path], **options: Any) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine([load_probe(folder) for folder in folders], EngineOptions(device="cpu"), **options)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
