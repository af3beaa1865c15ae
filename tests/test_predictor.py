"""What the gateway knows of a prompt: text as probes read it, and how unlike the training prompts it is."""

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Encoding

from offline.material import gather, plan
from probes.artifact import save_artifact
from probes.linear_eoi import LinearEoi
from probes.tfidf import Tfidf
from server.config import load
from server.pool import build_pool
from server.predictor import INLINE_CHARACTERS, Messages, Prediction, Predictor, Rendered
from server.sections.engine import Queue
from tests.support.examples import card_of
from tests.support.probes import NANO_POOL, artifact
from tests.test_config import pool, write

NONE = np.full(5, np.nan)
LONG = "three " * 200_000


def prediction(percentiles: list[float], passes: int) -> Prediction:
    return Prediction(NONE, NONE, np.array(percentiles), (None,) * 5, (), 0.0, passes)


@pytest.mark.parametrize("dependent", [False, True])
@pytest.mark.parametrize("passes", [1, 2, 5])
def test_known_prompts_are_no_odder_for_being_looked_at_by_several_passes(passes: int, dependent: bool) -> None:
    rng = np.random.default_rng(passes)
    drawn = rng.uniform(0, 100, size=(20_000, passes))
    if dependent:
        drawn[:, :] = drawn[:, :1]
    found = np.array([prediction([*row, *[np.nan] * (5 - passes)], passes).percentile for row in drawn], dtype=float)
    assert (found > 99).mean() < 0.0125
    assert (found > 50).mean() < 0.51
    if not dependent:
        assert (found > 99).mean() > 0.0075
        assert (found > 50).mean() > 0.49


def test_one_pass_is_taken_at_its_word_and_the_oddest_stay_so() -> None:
    nan = np.nan
    assert prediction([12.5, 80.0, nan, nan, nan], 1).percentile == pytest.approx(80.0)
    assert prediction([100.0, 0.0, 50.0, nan, nan], 3).percentile == 100.0
    assert prediction([nan] * 5, 0).percentile is None


def predictor(folder: Path) -> Predictor:
    probe = Tfidf(["three"], *np.ones((3, 1), dtype=np.float32))
    save_artifact(folder / "probe", card_of(probe), probe)
    arm = {"model": "small", "probe": "probe"}
    settings = load(write(folder, pool(arms={"small": arm})))
    return Predictor(build_pool(settings), settings)


def predictor_of(models: list[str], folder: Path) -> Predictor:
    """With a pass on each of these probe models."""
    for model in models:
        artifact(folder / model, model, layer=1, position=-1)
    arms = {model: {"model": "small", "probe": model} for model in models}
    settings = load(write(folder, pool(arms=arms)))
    return Predictor(build_pool(settings), settings)


@contextmanager
def counted_rounds() -> Iterator[list[int]]:
    """The number of the running event loop's rounds so far."""
    loop, rounds = asyncio.get_running_loop(), [0]

    def next_round() -> None:
        nonlocal ticking
        rounds[0] += 1
        ticking = loop.call_soon(next_round)

    ticking = loop.call_soon(next_round)
    yield rounds
    ticking.cancel()


@pytest.mark.anyio
async def test_a_conversation_of_any_length_fits_the_queue_of_a_text_probe(tmp_path: Path) -> None:
    found = predictor(tmp_path)
    long = await found.render([{"role": "system", "content": "Begin"}, {"role": "user", "content": LONG + "end"}])
    assert long.prompt.tokens < Queue().tokens / 4
    assert "truncated" in long.flags
    assert (long.prompt.text[:5], long.prompt.text[-3:]) == ("Begin", "end")
    assert "truncated" not in (await found.render([{"role": "user", "content": "three"}])).flags


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["image_url", "input_audio"])
async def test_images_and_sound_are_scored_on_the_text_and_flagged(kind: str, tmp_path: Path) -> None:
    found = predictor(tmp_path)
    parts = [{"type": "text", "text": "three"}, {"type": kind, kind: {}}]
    rendered = await found.render([{"role": "user", "content": parts}])
    assert rendered.flags == ("text-only",)
    assert rendered.prompt.text == "three"
    assert (await found.render([{"role": "user", "content": parts[:1]}])).flags == ()


@pytest.mark.anyio
async def test_dozens_of_conversations_of_several_requests_are_rendered_one_a_round(tmp_path: Path) -> None:
    """Whatever else the event loop has to do comes in between."""
    found = predictor(tmp_path)
    render, rendered_in = found._render, []

    def noted(messages: Messages) -> Rendered:
        rendered_in.append(rounds[0])
        return render(messages)

    async def request(size: int) -> list[Rendered]:
        return [await found.render_in_turn([{"role": "user", "content": f"{i} of {size}"}]) for i in range(size)]

    found._render = noted  # type: ignore[method-assign]  # for as long as this test runs
    with counted_rounds() as rounds:
        answers = await asyncio.gather(*map(request, (1, 20, 30)))
    assert [[one.prompt.text for one in answer] for answer in answers] == [
        [f"{i} of {size}" for i in range(size)] for size in (1, 20, 30)
    ]
    assert len(set(rendered_in)) == 51


TEXT = {"type": "text", "text": ""}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("messages", "on_the_loop"),
    [
        ([{"role": "user", "content": "three " * 600}], True),
        ([{"role": "user", "content": "three"}, {"role": "assistant", "content": None}] * 20, True),
        ([{"role": "user", "content": [{**TEXT, "text": "three"}, {"type": "image_url", "image_url": LONG}]}], True),
        ([{"role": "user", "content": LONG}], False),
        ([{"role": "user", "content": ""}] * 49_000, False),
        ([{"role": LONG, "content": ""}], False),
        ([{"role": "user", "content": [TEXT] * 49_000}], False),
        ([{"role": "user", "content": [{**TEXT, "text": LONG}]}], False),
    ],
    ids=["short", "turns", "image", "text", "many-messages", "role", "many-parts", "part"],
)
async def test_what_takes_long_to_render_is_rendered_beside_the_event_loop(
    messages: Messages, on_the_loop: bool, tmp_path: Path
) -> None:
    assert await rendered_on_the_loop(predictor(tmp_path), messages) == on_the_loop


@pytest.mark.anyio
async def test_passes_share_what_is_rendered_on_the_event_loop(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "3" * (INLINE_CHARACTERS // 2)}]
    assert await rendered_on_the_loop(predictor_of(["nano-small"], tmp_path), messages)
    three = predictor_of(["nano-small", "nano-medium", "nano-large"], tmp_path)
    assert len(three.passes) == 3
    assert not await rendered_on_the_loop(three, messages)
    assert await rendered_on_the_loop(three, [{"role": "user", "content": "3" * (INLINE_CHARACTERS // 4)}])


async def rendered_on_the_loop(found: Predictor, messages: Messages) -> bool:
    render, threads = found._render, []

    def noted(messages: Messages) -> Rendered:
        threads.append(threading.get_ident())
        return render(messages)

    found._render = noted  # type: ignore[method-assign]  # for as long as this test runs
    await found.render(messages)
    assert len(threads) == 1
    return threads[0] == threading.get_ident()


@pytest.mark.anyio
async def test_the_event_loop_goes_on_while_a_thread_tokenises(tmp_path: Path) -> None:
    found = predictor_of(["nano-small"], tmp_path)
    [renderer] = found.renderers
    tokenise, meanwhile = renderer._tokens, []

    def noted(prompt: str) -> Encoding:
        before = rounds[0]
        encoding = tokenise(prompt)
        meanwhile.append(rounds[0] - before)
        return encoding

    renderer._tokens = noted  # type: ignore[method-assign]  # for as long as this test runs
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # no thread is interrupted: the loop has a turn only where the other one gives it
    try:
        with counted_rounds() as rounds:
            for _ in range(20):
                await found.render([{"role": "user", "content": "Ann has 12. " * 1000}])
    finally:
        sys.setswitchinterval(interval)
    assert sum(meanwhile) > 0


@pytest.mark.anyio
async def test_training_cuts_long_prompts_where_serving_does(tmp_path: Path) -> None:
    """At the probe model's 512 positions, which are fewer than its recipe's 1,024 tokens."""
    text = "Add 4. " * 300
    served = await predictor_of(["nano-small"], tmp_path).render([{"role": "user", "content": text}])
    [token_ids] = served.prompt.token_ids
    assert len(token_ids) == 512
    assert "truncated" in served.flags
    assert plan([text], LinearEoi, str(NANO_POOL / "nano-small")).prompts == [token_ids]


def test_training_reads_long_texts_as_serving_does(tmp_path: Path) -> None:
    served = predictor(tmp_path)._render([{"role": "user", "content": LONG}]).prompt.text
    assert gather(plan([LONG], Tfidf, None)).inputs.texts == [served]
