"""The official client, in the version that the other clients here ask for; the main suite has a newer one."""

from collections.abc import Iterator

import openai
import pytest
from conftest import ARMS, PROBLEM

MESSAGES = [{"role": "user", "content": PROBLEM}]


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def test_an_answer_and_who_gave_it(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=MESSAGES)
    answer = raw.parse()
    assert raw.headers["x-pika-arm"] in ARMS
    assert answer.model == raw.headers["x-model-router-selected-model"]
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens > 0


def test_a_stream_says_what_the_whole_answer_says(client: openai.OpenAI) -> None:
    asked = {"model": "nano-large", "messages": MESSAGES, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert final.usage == whole.usage


async def test_async(base_url: str) -> None:
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        stream = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        assert text
        with pytest.raises(openai.NotFoundError, match="nano-huge"):
            await client.chat.completions.create(model="nano-huge", messages=MESSAGES)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auto", *ARMS]


def test_errors_are_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(model="auto", messages=MESSAGES, extra_body={"routing": {"polcy": "cascade"}})
    assert "polcy" in raised.value.message
    with pytest.raises(openai.BadRequestError, match="512"):
        client.chat.completions.create(model="nano-small", messages=[{"role": "user", "content": "Add 1. " * 400}])
