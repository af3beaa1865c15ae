"""Asks the gateway as any client would: through the official `openai` package."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError
from prometheus_client.parser import text_string_to_metric_families

from offline.benchmarks.base import Benchmark, Problem
from offline.demo_summary import Answer
from offline.verifiers.base import load
from server.config import Settings

CONCURRENCY = 32
TIMEOUT_S = 60.0
PROBE_COST = "pika_probe_cost_usd_total"


class DemoError(Exception):
    """The gateway refuses what the demo asks of it; the message is the gateway's."""


@dataclass
class Client:
    """One benchmark's problems, put to one gateway."""

    url: str
    benchmark: Benchmark
    settings: Settings
    routing: Mapping[str, Any]
    """The body's `routing` object; empty leaves it out."""
    seed: int
    """Problem i is sampled with seed + i, whoever answers it."""
    failures: list[str] = field(default_factory=list)

    async def answer_all(self, model: str, problems: Sequence[Problem], on_answer: Callable[[], None]) -> list[Answer]:
        """The problems' answers, in order; `model` is `auto` or an arm."""
        free = asyncio.Semaphore(CONCURRENCY)
        http_client = DefaultAsyncHttpxClient(trust_env=False)
        async with AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=TIMEOUT_S, max_retries=2, http_client=http_client
        ) as openai:

            async def answer(index: int, problem: Problem) -> Answer:
                async with free:
                    answered = await self._answer(openai, model, problem, self.seed + index)
                on_answer()
                return answered

            return await asyncio.gather(*(answer(i, problem) for i, problem in enumerate(problems)))

    async def _answer(self, openai: AsyncOpenAI, model: str, problem: Problem, seed: int) -> Answer:
        extra_body = {"routing": self.routing} if self.routing and model == "auto" else None
        messages: Any = self.benchmark.messages(problem)
        try:
            response = await openai.chat.completions.with_raw_response.create(
                model=model, messages=messages, seed=seed, extra_body=extra_body
            )
            completion = response.parse()
        except OpenAIError as error:
            self.failures.append(f"{type(error).__name__}: {error}")
            return Answer(None, correct=False, cost_usd=0)
        arm = response.headers["x-pika-arm"]
        prices = self.settings.models[self.settings.arms[arm].model].usd_per_million_tokens
        usage = completion.usage
        assert usage is not None
        verifier = load(self.benchmark.verifier)
        extracted = verifier.extract(completion.choices[0].message.content or "")
        return Answer(
            arm,
            correct=verifier.is_correct(extracted, problem.ground_truth),
            cost_usd=(usage.prompt_tokens * prices.input + usage.completion_tokens * prices.output) / 1e6,
            request_id=response.headers["x-request-id"],
        )

    async def tell(self, answers: Sequence[Answer]) -> None:
        """Have the gateway know which answers were right."""
        free = asyncio.Semaphore(CONCURRENCY)
        async with httpx.AsyncClient(base_url=self.url, timeout=TIMEOUT_S, trust_env=False) as client:

            async def tell(answer: Answer) -> None:
                outcome = {"id": answer.request_id, "correct": answer.correct, "source": "verifier"}
                async with free:
                    (await client.post("/v1/outcomes", json=outcome)).raise_for_status()

            await asyncio.gather(*(tell(answer) for answer in answers if answer.request_id is not None))

    def decision(self, problem: Problem) -> dict[str, Any]:
        """What POST /route says of a problem.

        Raises:
            DemoError: it says no.
        """
        body: dict[str, Any] = {"model": "auto", "messages": self.benchmark.messages(problem)}
        if self.routing:
            body["routing"] = self.routing
        response = httpx.post(f"{self.url}/route", json=body, timeout=TIMEOUT_S, trust_env=False)
        decision: dict[str, Any] = response.json()
        if not response.is_success:
            raise DemoError(decision["error"]["message"])
        return decision

    def probe_cost_usd(self) -> float:
        """What the probes have cost so far, by GET /metrics."""
        text = httpx.get(f"{self.url}/metrics", timeout=TIMEOUT_S, trust_env=False).raise_for_status().text
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == PROBE_COST)
