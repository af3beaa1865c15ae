"""pydantic-ai's agents, with the gateway as their model."""

import pytest
from conftest import ARMS, PROBLEM
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider


def agent(base_url: str, model: str = "auto") -> Agent:
    return Agent(OpenAIChatModel(model, provider=OpenAIProvider(base_url=base_url, api_key="none")))


async def test_an_answer(base_url: str) -> None:
    result = await agent(base_url).run(PROBLEM)
    assert result.output
    assert result.usage.output_tokens > 0
    assert result.all_messages()[-1].model_name in ARMS


async def test_a_stream(base_url: str) -> None:
    async with agent(base_url).run_stream(PROBLEM) as result:
        text = "".join([part async for part in result.stream_text(delta=True)])
    assert text
    assert result.usage.output_tokens > 0


async def test_errors_are_the_clients_own(base_url: str) -> None:
    with pytest.raises(ModelHTTPError) as raised:
        await agent(base_url, "nano-huge").run(PROBLEM)
    assert raised.value.status_code == 404
