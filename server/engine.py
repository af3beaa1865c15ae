"""The engine that the configuration names: a process of ours, one at an address, or a vLLM server with the plug-in."""

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from probes.artifact import Artifact
from probes.engine.base import Engine, EngineOptions
from probes.engine.client import SocketEngine
from probes.engine.process import ProcessEngine
from probes.engine.wire import LOOKUPS, Report
from server.config import ConfigError
from server.metrics import Metrics
from server.sections.engine import Engine as EngineSettings


@asynccontextmanager
async def opened(
    artifacts: Sequence[Artifact], settings: EngineSettings, metrics: Metrics, url: str | None = None
) -> AsyncIterator[Engine]:
    """A started engine.

    Args:
        url: of the engine process that the parent of several workers has started.

    Raises:
        ConfigError: the variable of its secret is not set.
        ProbeError: it cannot load a probe model, or serves other probes.
    """
    engine = _engine(artifacts, settings, lambda report: observe(report, metrics), url)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


def _engine(
    artifacts: Sequence[Artifact], settings: EngineSettings, on_report: Callable[[Report], None], url: str | None
) -> Engine:
    if url is not None:
        return SocketEngine(url, artifacts, on_report=on_report)
    if settings.kind == "process":
        return ProcessEngine(artifacts, options(settings), on_report=on_report)
    if settings.kind == "remote":
        return SocketEngine(settings.urls[0], artifacts, secret=secret(settings).encode(), on_report=on_report)
    # Only such gateways need it.
    from probes.engine.vllm_engine import VllmEngine

    queue = settings.queue
    return VllmEngine(
        artifacts, settings.urls, api_key=secret(settings), queue_prompts=queue.prompts, queue_tokens=queue.tokens
    )


def options(settings: EngineSettings) -> EngineOptions:
    queue = settings.queue
    return EngineOptions(settings.device, queue.prompts, queue.tokens, settings.cache_prompts)


def secret(settings: EngineSettings) -> str:
    """What gateway and engine both know; empty where the configuration names none.

    Raises:
        ConfigError: its variable is not set.
    """
    if settings.api_key_env is None:
        return ""
    if not (value := os.environ.get(settings.api_key_env)):
        raise ConfigError(f"engine.api_key_env: the variable {settings.api_key_env} is not set in the environment")
    return value


def observe(report: Report, metrics: Metrics) -> None:
    for batch in report.batches:
        metrics.queue_s.observe(batch.queue_s)
        metrics.batch_prompts.observe(batch.prompts)
        metrics.batch_tokens.observe(batch.tokens)
        metrics.padding.inc(batch.padding_tokens)
        metrics.reused.inc(batch.reused_tokens)
    for found, prompts in zip(LOOKUPS, report.lookups, strict=True):
        metrics.cache.labels(found).inc(prompts)
