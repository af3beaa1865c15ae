"""The engine where vLLM runs the probe models: a client of the servers that `pika probe-server` starts.

Prompts go out as token ids, answers come back as raw float32. Probes that read text alone are computed here.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from uuid import uuid4

import httpx
import numpy as np
import orjson

from probes.artifact import Artifact, distinct_passes
from probes.base import FloatArray, Inputs, ProbeError
from probes.engine import heads
from probes.engine.base import NOT_FINITE, EngineUnavailableError, Prompt, Scores
from probes.engine.vllm_routes import Route, empty_scores, routes
from probes.engine.vllm_serving import check_servable, probe_name

logger = logging.getLogger(__name__)

CONNECTIONS = 64
"""To each server; further requests wait for one. vLLM itself batches what arrives."""
LOOK_S = 1.0
"""How often we look whether the servers are there and what they serve."""
LOOK_TIMEOUT_S = 5.0
TIMEOUT_S = 600.0
"""Of everything else; deadlines are earlier."""
MESSAGE_CHARACTERS = 500


class VllmEngine:
    """See `Engine`.

    Args:
        artifacts: the probes, whose order the scores have.
        urls: of the servers, such as http://127.0.0.1:8200; each serves the probes of one probe model.
        api_key: what the servers were given as VLLM_API_KEY.
        queue_prompts, queue_tokens: what may wait for answers; more is refused at once.

    Raises:
        ProbeError: vLLM cannot serve one of the probes.
    """

    def __init__(
        self,
        artifacts: Sequence[Artifact],
        urls: Sequence[str],
        *,
        api_key: str = "",
        queue_prompts: int = 512,
        queue_tokens: int = 200_000,
    ) -> None:
        for artifact in artifacts:
            check_servable(artifact)
        self._artifacts = tuple(artifacts)
        self._names = [probe_name(artifact) for artifact in artifacts]
        self._passes = distinct_passes(artifacts)
        self._urls = [url.rstrip("/").removesuffix("/v1") for url in urls]
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._queue_prompts, self._queue_tokens = queue_prompts, queue_tokens
        self._prompts = self._tokens = 0
        self._routes: list[Route] = []
        self._problem: str | None = "the engine is closed"
        """What keeps us from scoring."""
        self._client: httpx.AsyncClient
        self._watcher: asyncio.Task[None] | None = None

    @property
    def ready(self) -> bool:
        return self._problem is None

    async def start(self) -> None:
        """
        Raises:
            ProbeError: a server is away, or none serves one of the probes.
        """
        limits = httpx.Limits(max_connections=CONNECTIONS * len(self._urls))
        self._client = httpx.AsyncClient(headers=self._headers, limits=limits, timeout=TIMEOUT_S, trust_env=False)
        await self._look()
        if self._problem is not None:
            await self._client.aclose()
            raise ProbeError(self._problem)
        self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        self._problem = "the engine is closed"
        if self._watcher is not None:
            self._watcher.cancel()
            with suppress(asyncio.CancelledError):
                await self._watcher
            await self._client.aclose()

    async def score(self, prompts: Sequence[Prompt], deadline: float) -> Scores:
        """See `Engine.score`."""
        if self._problem is not None:
            raise EngineUnavailableError(self._problem)
        tokens = sum(prompt.tokens for prompt in prompts)
        if self._prompts + len(prompts) > self._queue_prompts or self._tokens + tokens > self._queue_tokens:
            waits = f"{self._prompts} prompts with {self._tokens} tokens wait"
            holds = f"(engine.queue: {self._queue_prompts} prompts, {self._queue_tokens} tokens)"
            raise EngineUnavailableError(f"the engine's queue is full: {waits} {holds}")
        self._prompts += len(prompts)
        self._tokens += tokens
        try:
            # A request that is cancelled closes its connection, and vLLM drops its prompts.
            async with asyncio.timeout_at(deadline):
                return await self._score(prompts)
        except TimeoutError as error:
            raise EngineUnavailableError("vLLM did not answer before the deadline (engine.deadline_ms)") from error
        finally:
            self._prompts -= len(prompts)
            self._tokens -= tokens

    async def _score(self, prompts: Sequence[Prompt]) -> Scores:
        scores = empty_scores(len(prompts), len(self._artifacts))
        asked = self._routes
        answers = await asyncio.gather(*(self._ask(route, prompts) for route in asked))
        for route, answer in zip(asked, answers, strict=True):
            route.fill(scores, answer)
        if any(artifact.probe.site is None for artifact in self._artifacts):
            await asyncio.to_thread(self._fill_without_model, scores, prompts)
        if not np.isfinite(scores.success).all():
            raise EngineUnavailableError(NOT_FINITE)
        return scores

    async def _ask(self, route: Route, prompts: Sequence[Prompt]) -> FloatArray:
        """What a server says of prompts, (n * passes, width)."""
        sent = route.token_ids(prompts)
        answer = await self._post(route, sent)
        lacking = route.lacking(answer)
        if len(lacking):
            # The token that a probe reads came out of vLLM's prefix cache. With a salt of their own they are not in it.
            answer[lacking] = await self._post(route, [sent[i] for i in lacking], cache_salt=uuid4().hex)
        return answer

    async def _post(self, route: Route, sent: Sequence[Sequence[int]], **fields: str) -> FloatArray:
        body = orjson.dumps({"model": route.model, "input": sent, "encoding_format": "bytes_only", **fields})
        headers = {"content-type": "application/json"}
        try:
            answer = await self._client.post(f"{route.url}/pooling", content=body, headers=headers)
        except httpx.HTTPError as error:
            raise EngineUnavailableError(f"the probe server at {route.url} does not answer: {error!r}") from error
        if not answer.is_success:
            said = f"({answer.status_code}): {answer.text[:MESSAGE_CHARACTERS]}"
            raise EngineUnavailableError(f"the probe server at {route.url} refuses a prompt {said}")
        if len(answer.content) != len(sent) * route.width * 4:
            raise EngineUnavailableError(f"{route.url} answers otherwise than `pika probe-server` does")
        return np.frombuffer(answer.content, dtype="<f4").reshape(len(sent), route.width).astype(np.float64)

    def _fill_without_model(self, scores: Scores, prompts: Sequence[Prompt]) -> None:
        """Put in what probes tell by the text or its length."""
        for index, artifact in enumerate(self._artifacts):
            if artifact.probe.site is not None:
                continue
            lengths = None
            if artifact.pass_ is not None:
                pass_ = self._passes.index(artifact.pass_)
                lengths = np.array([len(prompt.token_ids[pass_]) for prompt in prompts])
            inputs = Inputs(texts=[prompt.text for prompt in prompts], prompt_tokens=lengths)
            scores.success[:, index] = heads.scores([artifact], inputs).success[:, 0]

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            before = self._problem
            await self._look()
            if self._problem is not None and before is None:
                logger.error("%s", self._problem)
            elif self._problem is None and before is not None:
                logger.info("the probe servers are there again")

    async def _look(self) -> None:
        """Learn what the servers serve."""
        found = await asyncio.gather(*(self._served(url) for url in self._urls))
        serves = {url: names for url, names in zip(self._urls, found, strict=True) if not isinstance(names, str)}
        self._routes, missing = routes(self._artifacts, self._names, serves)
        self._problem = None
        if missing:
            arms = ", ".join(artifact.card.target.arm for artifact in missing)
            said = [
                f"{url} serves other probes" if url in serves else f"{url}: {names}"
                for url, names in zip(self._urls, found, strict=True)
            ]
            sources = " ".join(artifact.source for artifact in missing)
            self._problem = (
                f"no probe server has the probe of arm {arms} ({'; '.join(said)}): start one with "
                f"`pika probe-server --probes {sources}`"
            )

    async def _served(self, url: str) -> list[str] | str:
        """What a server serves, or what is wrong with it."""
        try:
            answer = await self._client.get(f"{url}/v1/models", timeout=LOOK_TIMEOUT_S)
            if answer.status_code in (401, 403):
                return f"refuses the key ({answer.status_code})"
            return [str(entry["id"]) for entry in answer.raise_for_status().json()["data"]]
        except httpx.HTTPError as error:
            return f"does not answer GET /v1/models ({error!r})"
        except (ValueError, KeyError, TypeError):
            return "does not answer GET /v1/models as vLLM does"
