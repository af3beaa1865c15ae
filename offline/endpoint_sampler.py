"""Samples from OpenAI-compatible endpoints, many requests at a time."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any

from openai import APIConnectionError, APIError, APIStatusError, AsyncOpenAI, BadRequestError, UnprocessableEntityError
from openai.types.chat import ChatCompletion

from offline.samplers import Job, Record, Sample, SampledArm, SamplingError, render

logger = logging.getLogger(__name__)

TIMEOUT_S = 600.0
RETRIES = 6
"""Of one request, with the client's backoff, which honours Retry-After: about half a minute in all."""


def sample(jobs: Sequence[Job], k: int, record: Record, concurrency: int) -> None:
    """Sample k answers for each job.

    Raises:
        SamplingError: an endpoint cannot be reached, or refuses a request.
    """
    asyncio.run(_sample_all(jobs, k, record, concurrency))


async def _sample_all(jobs: Sequence[Job], k: int, record: Record, concurrency: int) -> None:
    arms = {job.arm.name: job.arm for job in jobs}
    endpoints = {name: Endpoint(arm, k) for name, arm in arms.items()}
    try:
        for endpoint in endpoints.values():
            await endpoint.check()
        waiting = iter(jobs)
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(jobs))):
                group.create_task(_work(waiting, endpoints, record))
    except ExceptionGroup as errors:
        # The first failure cancelled the other workers.
        raise errors.exceptions[0] from None
    finally:
        for endpoint in endpoints.values():
            await endpoint.close()


async def _work(waiting: Iterator[Job], endpoints: dict[str, "Endpoint"], record: Record) -> None:
    for job in waiting:
        record(await endpoints[job.arm.name].sample(job))


class Endpoint:
    """One arm's replicas, used in turn."""

    def __init__(self, arm: SampledArm, k: int) -> None:
        self._arm = arm
        self._k = k
        self._clients = [
            AsyncOpenAI(base_url=url, api_key=key, timeout=TIMEOUT_S, max_retries=RETRIES)
            for url, key in zip(arm.urls, arm.api_keys, strict=True)
        ]
        self._turn = count()
        self._tokenizer = _local_tokenizer(arm.source)
        self._all_at_once = True
        """Whether one request for k answers tells each answer's tokens; found out by trying."""

    async def check(self) -> None:
        """Fail at once, not after every retry, where nobody answers."""
        for client in self._clients:
            try:
                await client.with_options(max_retries=1, timeout=10).models.list()
            except APIConnectionError as error:
                raise self._error(client, error) from error
            except APIError:
                logger.debug("%s lists no models; its answers will tell", client.base_url)

    async def sample(self, job: Job) -> Sample:
        client = self._clients[next(self._turn) % len(self._clients)]
        try:
            answers = await self._answers(client, job)
        except APIError as error:
            raise self._error(client, error) from error
        return Sample(
            arm=job.arm.name,
            split=job.split,
            problem_id=job.problem_id,
            formatted_prompt=self._prompt(job),
            solutions=[solution for solution, _, _ in answers],
            input_tokens=answers[0][1],
            output_tokens=[tokens for _, _, tokens in answers],
        )

    async def _answers(self, client: AsyncOpenAI, job: Job) -> list[tuple[str, int, int]]:
        """(solution, prompt tokens, completion tokens) of each of k answers."""
        if self._k > 1 and self._all_at_once:
            # usage sums over the answers; vLLM's token ids tell each one's length.
            try:
                completion = await self._complete(client, job, job.seed, n=self._k, return_token_ids=True)
            except (BadRequestError, UnprocessableEntityError):
                logger.debug("%s refuses n=%d with token ids; one request per answer", client.base_url, self._k)
            else:
                choices = sorted(completion.choices, key=lambda choice: choice.index)
                token_ids = [(choice.model_extra or {}).get("token_ids") for choice in choices]
                if len(choices) == self._k and all(token_ids):
                    prompt_tokens = _usage(completion)[0]
                    return [
                        (choice.message.content or "", prompt_tokens, len(ids or ()))
                        for choice, ids in zip(choices, token_ids, strict=True)
                    ]
            self._all_at_once = False
        completions = [await self._complete(client, job, job.seed + index) for index in range(self._k)]
        return [(completion.choices[0].message.content or "", *_usage(completion)) for completion in completions]

    async def _complete(self, client: AsyncOpenAI, job: Job, seed: int, **extra: Any) -> ChatCompletion:
        body = {**self._arm.fields, "model": self._arm.model, "messages": job.messages, "seed": seed, **extra}
        return await client.post("/chat/completions", cast_to=ChatCompletion, body=body)

    def _prompt(self, job: Job) -> str:
        if self._tokenizer is None:
            return job.messages[-1]["content"]
        return render(self._tokenizer, job.arm, job.messages)

    def _error(self, client: AsyncOpenAI, error: APIError) -> SamplingError:
        where = f"arm {self._arm.name!r}: {client.base_url}"
        if isinstance(error, APIStatusError):
            return SamplingError(f"{where} answers {error.status_code}: {error.message}")
        return SamplingError(
            f"{where} does not answer ({error.message}); is the server up? --url ARM=URL names another"
        )

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


def _usage(completion: ChatCompletion) -> tuple[int, int]:
    if completion.usage is None:
        raise SamplingError("the endpoint sends no usage, so its tokens and costs are unknown; use one that does")
    return completion.usage.prompt_tokens, completion.usage.completion_tokens


def _local_tokenizer(source: str) -> Any:
    """The model's tokenizer where it is on this machine, else None: nothing is downloaded for a column of text."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return tokenizer if tokenizer.chat_template else None
