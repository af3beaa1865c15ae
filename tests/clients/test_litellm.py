"""LiteLLM's client, which takes the gateway for an OpenAI endpoint."""

import litellm
import pytest
from conftest import ARMS, PROBLEM

MESSAGES = [{"role": "user", "content": PROBLEM}]


@pytest.fixture
def asked(base_url: str) -> dict[str, object]:
    return {"model": "openai/auto", "messages": MESSAGES, "api_base": base_url, "api_key": "none", "timeout": 60}


def test_an_answer(asked: dict[str, object]) -> None:
    answer = litellm.completion(**asked)
    assert answer.model in ARMS
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


async def test_a_stream(asked: dict[str, object]) -> None:
    stream = await litellm.acompletion(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert chunks[-1].usage.completion_tokens > 0


def test_errors_are_the_clients_own(asked: dict[str, object]) -> None:
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": "openai/nano-huge"}, max_retries=0)
