"""Samples from OpenAI-compatible endpoints, many requests at a time."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from offline.chat_client import ChatClient, RefusedError, UnavailableError
from offline.samplers import (
    Job,
    Limits,
    Record,
    Sample,
    SampledArm,
    SamplingError,
    conversation,
    local_tokenizer,
    render,
    request_fields,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """A job as an endpoint is asked it."""

    job: Job
    body: Mapping[str, Any]
    """But for what tells its k answers apart."""
    formatted_prompt: str
    """As the model reads it, where its tokenizer is on this machine; else the last message."""


def sample(jobs: Sequence[Job], k: int, record: Record, limits: Limits) -> None:
    """Sample k answers for each job.

    Raises:
        SamplingError: an endpoint cannot be reached, or refuses a request.
    """

    async def record_all() -> None:
        async for finished in sampled(prepare(jobs), k, limits):
            record(finished)

    asyncio.run(record_all())


def prepare(jobs: Iterable[Job]) -> list[Request]:
    tokenizers: dict[str, Any] = {}
    requests = []
    for job in jobs:
        if job.arm.source not in tokenizers:
            tokenizers[job.arm.source] = local_tokenizer(job.arm.source)
        tokenizer = tokenizers[job.arm.source]
        template = None if tokenizer is None else str(tokenizer.chat_template)
        messages = conversation(job, template)
        body = {**request_fields(job.arm, template), "model": job.arm.model, "messages": messages}
        text = messages[-1]["content"] if tokenizer is None else render(tokenizer, job.arm, messages)
        requests.append(Request(job, body, text))
    return requests


async def sampled(requests: Sequence[Request], k: int, limits: Limits) -> AsyncIterator[Sample]:
    """Samples as they come, of all models at once.

    Raises:
        SamplingError: an endpoint cannot be reached, or refuses a request; what was sampled before has come out.
    """
    finished: asyncio.Queue[Sample | None] = asyncio.Queue()

    async def work() -> None:
        try:
            await _sample_all(requests, k, limits, finished)
        finally:
            finished.put_nowait(None)

    task = asyncio.create_task(work())
    try:
        while (one := await finished.get()) is not None:
            yield one
        await task
    finally:
        task.cancel()


async def _sample_all(
    requests: Sequence[Request], k: int, limits: Limits, finished: "asyncio.Queue[Sample | None]"
) -> None:
    by_endpoints: dict[tuple[str, ...], list[Request]] = {}
    for request in requests:
        by_endpoints.setdefault(request.job.arm.urls, []).append(request)
    async with AsyncExitStack() as open_clients:
        endpoints = []
        for urls, theirs in by_endpoints.items():
            arm = theirs[0].job.arm
            client = ChatClient(urls, arm.api_keys, limits.timeout_s, limits.patience_s)
            endpoints.append((Endpoint(await open_clients.enter_async_context(client), k), theirs))
            try:
                await client.check()
            except UnavailableError as error:
                raise _away(arm, error) from error
        try:
            async with asyncio.TaskGroup() as group:
                for endpoint, theirs in endpoints:
                    waiting = iter(theirs)
                    for _ in range(min(limits.concurrency, len(theirs))):
                        group.create_task(_work(waiting, endpoint, finished))
        except ExceptionGroup as errors:
            # The first failure cancelled the other workers.
            raise errors.exceptions[0] from None


async def _work(waiting: Iterator[Request], endpoint: "Endpoint", finished: "asyncio.Queue[Sample | None]") -> None:
    for request in waiting:
        finished.put_nowait(await endpoint.sample(request))


@dataclass(frozen=True)
class _Answer:
    text: str
    output_tokens: int
    truncated: bool


class Endpoint:
    """What answers the requests of one or more arms."""

    def __init__(self, client: ChatClient, k: int) -> None:
        self._client = client
        self._k = k
        self._all_at_once = k > 1
        """Whether one request for k answers tells each answer's tokens; found out by trying."""

    async def sample(self, request: Request) -> Sample:
        """
        Raises:
            SamplingError: the endpoint is away, refuses the request, or answers in another form than OpenAI's.
        """
        job = request.job
        where = f"arm {job.arm.name!r}, problem {job.problem_id}"
        try:
            input_tokens, answers = await self._answers(request)
        except RefusedError as error:
            raise SamplingError(f"{where}: {error}{_hint(error)}") from error
        except UnavailableError as error:
            raise _away(job.arm, error) from error
        except (KeyError, TypeError, IndexError) as error:
            raise SamplingError(
                f"{where}: the answer is not of OpenAI's form ({error!r}): it needs choices, and usage, without which "
                "tokens and costs are unknown; use an endpoint that sends them"
            ) from error
        return Sample(
            arm=job.arm.name,
            split=job.split,
            problem_id=job.problem_id,
            formatted_prompt=request.formatted_prompt,
            solutions=[answer.text for answer in answers],
            input_tokens=input_tokens,
            output_tokens=[answer.output_tokens for answer in answers],
            truncated=[answer.truncated for answer in answers],
        )

    async def _answers(self, request: Request) -> tuple[int, list[_Answer]]:
        """The prompt's tokens and k answers, the i-th from the job's seed + i."""
        body, seed = request.body, request.job.seed
        if self._all_at_once:
            # usage sums over the answers; vLLM's token ids tell each one's length.
            try:
                completion = await self._client.complete({**body, "seed": seed, "n": self._k, "return_token_ids": True})
            except RefusedError as error:
                if error.status not in (400, 422):
                    raise
                logger.debug("%s; one request per answer", error)
            else:
                choices = sorted(completion["choices"], key=lambda choice: choice.get("index", 0))
                if len(choices) == self._k and all(choice.get("token_ids") for choice in choices):
                    answers = [_answer(choice, len(choice["token_ids"])) for choice in choices]
                    return int(completion["usage"]["prompt_tokens"]), answers
            self._all_at_once = False
        completions = [await self._client.complete({**body, "seed": seed + index}) for index in range(self._k)]
        answers = [_answer(one["choices"][0], int(one["usage"]["completion_tokens"])) for one in completions]
        return int(completions[0]["usage"]["prompt_tokens"]), answers


def _answer(choice: Mapping[str, Any], output_tokens: int) -> _Answer:
    return _Answer(choice["message"]["content"] or "", output_tokens, choice.get("finish_reason") == "length")


def _away(arm: SampledArm, error: UnavailableError) -> SamplingError:
    return SamplingError(f"arm {arm.name!r}: {error}; is the server up? --url ARM=URL names another")


def _hint(error: RefusedError) -> str:
    if "reasoning_effort" in str(error):
        return "; for an endpoint that does not know it, say it yourself: --system ARM='Reasoning: low'"
    if error.status in (401, 403):
        return "; a replica's api_key_env names the environment variable with its key"
    return ""
