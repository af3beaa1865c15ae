"""The gateway as its users meet it: the official openai client, real vLLM servers, the nano pool's own probes."""

import asyncio
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from offline.benchmarks.base import load as load_benchmark
from server.app import create_app
from server.config import Settings, load
from server.launch.pool import launched
from tests.conftest import POOL, VllmPool
from tests.support.gateway import serving
from tests.support.processes import descendants, no_process_left, until

pytestmark = pytest.mark.vllm

ARMS = ("nano-small", "nano-medium", "nano-large")


@pytest.fixture(scope="module")
def base_url(vllm_pool: VllmPool) -> Iterator[str]:
    with serving(create_app(vllm_pool.settings)) as url:
        yield url


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{base_url}/v1", api_key="unused", timeout=60, max_retries=0) as client:
        yield client


def ask(text: str) -> list[openai.types.chat.ChatCompletionMessageParam]:
    return [{"role": "user", "content": text}]


QUESTION = "Find the final number. Begin with 4. Increase it by 3. Take 1. Add 7. Multiply it by 2. Decrease it by 1."
EASY = "What is x at the end? x = 12; x -= 9; x += 4; x *= 2; x -= 4; x = 11;"
HARD = "What number do we end with? Begin with 12. Add 3. Double it. Subtract 5. Add 3. Add 6. Subtract 9. Add 8."


def test_easy_goes_to_small_and_hard_does_not(client: openai.OpenAI) -> None:
    easy = client.chat.completions.with_raw_response.create(model="auto", messages=ask(EASY))
    assert easy.headers["x-pika-arm"] == "nano-small"
    assert easy.parse().model == "nano-small"
    assert float(easy.headers["x-pika-success-probability"]) > 0.8
    hard = client.chat.completions.with_raw_response.create(model="auto", messages=ask(HARD))
    assert hard.headers["x-pika-arm"] != "nano-small"


def test_routed_and_pinned_answers_are_the_same(client: openai.OpenAI) -> None:
    routed = client.chat.completions.create(model="auto", messages=ask(QUESTION), seed=3)
    pinned = client.chat.completions.create(model=routed.model, messages=ask(QUESTION), seed=3)
    assert routed.choices[0].message.content == pinned.choices[0].message.content
    assert routed.usage == pinned.usage


def test_streams(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="nano-large", messages=ask(QUESTION), seed=3)
    chunks = list(client.chat.completions.create(model="nano-large", messages=ask(QUESTION), seed=3, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)
    with_usage = list(
        client.chat.completions.create(
            model="nano-large", messages=ask(QUESTION), seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert with_usage[-1].usage == whole.usage


@pytest.mark.parametrize("model", ["auto-min_cost", "auto", "nano-large"])
def test_completions_by_policy_whole_and_streamed(client: openai.OpenAI, model: str) -> None:
    """Beginnings that a model goes on with; the same ones for each way to ask."""
    given: dict[str, Any] = {"prompt": QUESTION, "max_tokens": 8, "temperature": 0}
    answer = client.completions.with_raw_response.create(model=model, **given)
    arm, whole = answer.headers["x-pika-arm"], answer.parse()
    assert arm == whole.model
    assert arm in {"auto-min_cost": ["nano-small"], "auto": ARMS, "nano-large": ["nano-large"]}[model]
    assert whole.usage is not None
    assert 0 < whole.usage.completion_tokens <= 8
    chunks = list(client.completions.create(model=model, **given, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text != ""
    assert all(chunk.model == arm and chunk.usage is None for chunk in chunks)


def test_what_is_not_routed_is_served_to_pinned_arms(client: openai.OpenAI, base_url: str) -> None:
    def post(path: str, **body: Any) -> Any:
        answer = httpx.post(f"{base_url}{path}", json={"model": "nano-medium", **body}, timeout=60)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-pika-arm"] == "nano-medium"
        return answer.json()

    read = post("/tokenize", prompt=QUESTION)
    assert read["count"] == len(read["tokens"]) > 10
    assert post("/detokenize", tokens=read["tokens"])["prompt"] == QUESTION

    given: dict[str, Any] = {"model": "nano-medium", "input": EASY, "temperature": 0, "max_output_tokens": 16}
    whole = client.responses.create(**given)
    assert whole.model == "nano-medium"
    assert whole.usage is not None
    assert whole.usage.output_tokens > 0
    events = list(client.responses.create(**given, stream=True))
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text != ""
    assert events[-1].type == "response.completed"
    with pytest.raises(openai.NotFoundError, match="is not routed"):
        client.responses.create(**{**given, "model": "auto"})


def test_parameters_take_effect_upstream(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="auto", messages=ask(QUESTION), n=3, logprobs=True, top_logprobs=2, max_tokens=2
    )
    assert len(answer.choices) == 3
    for choice in answer.choices:
        assert choice.finish_reason == "length"
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 2
    as_json = client.chat.completions.create(
        model="auto", messages=ask(QUESTION), response_format={"type": "json_object"}, temperature=0, max_tokens=200
    )
    assert (as_json.choices[0].message.content or "").lstrip().startswith("{")


def test_the_async_client_many_at_once(base_url: str) -> None:
    async def run() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{base_url}/v1", api_key="unused", timeout=120) as client:
            problems = load_benchmark("running_total").problems("test", 100, seed=77)
            answers = await asyncio.gather(
                *(client.chat.completions.create(model="auto", messages=ask(problem.problem)) for problem in problems)
            )
            return [answer.choices[0].message.content for answer in answers]

    answers = asyncio.run(run())
    assert len(answers) == 100
    assert all(answers)


def test_errors_as_the_client_knows_them(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-4", messages=ask("hi"))
    with pytest.raises(openai.BadRequestError, match="did you mean 'utility'"):
        client.chat.completions.create(model="auto-utilty", messages=ask("hi"))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="auto", messages=ask("Add 3. " * 400))
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):  # vLLM's own refusal, relayed
        client.chat.completions.create(model="nano-small", messages=ask("hi"), temperature=-1)


def test_a_client_that_leaves_frees_the_server(base_url: str, vllm_pool: VllmPool) -> None:
    body = {"model": "nano-large", "messages": ask(QUESTION), "stream": True, "max_tokens": 400, "ignore_eos": True}
    with httpx.stream("POST", f"{base_url}/v1/chat/completions", json=body, timeout=60) as answer:
        chunks = answer.iter_raw()
        next(chunks)
    metrics = vllm_pool.urls["nano-large"].removesuffix("/v1") + "/metrics"
    until(lambda: _running_requests(metrics) == 0, 10, "vLLM stops generating for a client that left")


def _running_requests(url: str) -> float:
    text = httpx.get(url, timeout=10).text
    return sum(float(value) for value in re.findall(r"^vllm:num_requests_running\{.*\} (\S+)", text, re.MULTILINE))


def test_score_in_every_form(base_url: str) -> None:
    def score(given: object) -> list[dict[str, dict[str, dict[str, float]]]]:
        answer = httpx.post(f"{base_url}/score", json={"input": given}, timeout=60)
        assert answer.status_code == 200
        data: list[dict[str, dict[str, dict[str, float]]]] = answer.json()["data"]
        return data

    [one] = score(EASY)
    two = score([EASY, HARD])
    [talk] = score([[{"role": "user", "content": EASY}]])
    assert [entry["index"] for entry in two] == [0, 1]
    for arm in ARMS:
        scores = one["arms"][arm]
        assert scores["difficulty"] == pytest.approx(1 - scores["success_probability"])
        for other in (two[0], talk):
            assert other["arms"][arm]["success_probability"] == pytest.approx(scores["success_probability"], abs=1e-5)
    assert one["arms"]["nano-small"]["success_probability"] > two[1]["arms"]["nano-small"]["success_probability"]
    for wrong in ({"input": []}, {"input": 3}, {"input": [3]}, {"input": "a", "model": "b"}, {}):
        refused = httpx.post(f"{base_url}/score", json=wrong, timeout=60)
        assert refused.status_code == 400
        assert refused.json()["error"]["message"]


def test_every_policy_can_be_asked_for(base_url: str) -> None:
    def arm(model: str, **routing: object) -> str:
        body = {"model": model, "messages": ask(HARD), "routing": routing}
        answer = httpx.post(f"{base_url}/route", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["arm"])

    assert arm("auto-max_success") == "nano-large"
    assert arm("auto-min_cost") == "nano-small"
    assert arm("auto-utility-0") == "nano-large"
    assert arm("auto-utility-100") == "nano-small"
    assert arm("auto-cascade-0.99") == "nano-large"
    assert arm("auto-min_success-0") == "nano-small"
    assert arm("auto-target_accuracy-0.9") in ARMS
    assert arm("auto-random") in ARMS
    for variant in ("lambda", "original", "normalized", "ratio", "success_per_dollar", "threshold", "sigmoid"):
        assert arm("auto", policy="utility", variant=variant) in ARMS
    assert arm("auto-max_success", arms=["nano-small"]) == "nano-small"


@pytest.mark.anyio
async def test_a_server_killed_in_mid_stream_and_after(tmp_path: Path) -> None:
    """The stream ends with an error event; the next request is answered by another arm; the server comes back."""
    with no_process_left():
        async with launched(_only("nano-small", "nano-medium"), log_dir=tmp_path) as settings:
            assert settings.resolve("x") == POOL.parent / "x"
            assert settings.models["nano-small"].replicas[0].launch is None
            await kill_in_mid_stream(settings)


async def kill_in_mid_stream(settings: Settings) -> None:
    victim = _server_pid(settings, "nano-medium")
    with serving(create_app(settings)) as url:
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            body = {"model": "auto-max_success", "messages": ask(QUESTION), "max_tokens": 400, "ignore_eos": True}
            async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as answer:
                assert answer.headers["x-pika-arm"] == "nano-medium"
                chunks = answer.aiter_text()
                text = await anext(chunks)
                os.kill(victim, signal.SIGKILL)
                async for chunk in chunks:
                    text += chunk
            last = text.removesuffix("\n\n").rpartition("\n\n")[2]
            assert "broke off" in json.loads(last.removeprefix("data: "))["error"]["message"]

            answer = await client.post("/v1/chat/completions", json={**body, "max_tokens": 5})
            assert answer.status_code == 200
            assert answer.headers["x-pika-arm"] == "nano-small"
            assert answer.headers["x-pika-path"] == "fallback"

            await asyncio.to_thread(until, lambda: not _all_up(url), 10, "the health checks notice")
            await asyncio.to_thread(until, lambda: _all_up(url), 90, "the killed server is back")
            answer = await client.post("/v1/chat/completions", json={**body, "max_tokens": 5})
            assert answer.headers["x-pika-arm"] == "nano-medium"


def _only(*names: str) -> Settings:
    settings = load(POOL)
    models = {name: settings.models[name] for name in names}
    return settings.model_copy(update={"models": models, "arms": {name: settings.arms[name] for name in names}})


def _all_up(url: str) -> bool:
    replicas = httpx.get(f"{url}/ready", timeout=10).json()["replicas"]
    return all(healthy for model in replicas.values() for healthy in model.values())


def _server_pid(settings: Settings, name: str) -> int:
    port = str(settings.models[name].replicas[0].url).rpartition(":")[2].removesuffix("/v1")
    inode = next(
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[1].endswith(f":{int(port):04X}") and line.split()[3] == "0A"  # listening
    )
    # The engine, forked later, holds the inherited socket too.
    for pid in sorted(descendants(os.getpid())):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            if str(link.readlink()) == f"socket:[{inode}]":
                return pid
    raise AssertionError(f"nobody listens on {port}")
