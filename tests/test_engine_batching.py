"""One thread computes for everybody: once, in time, and for those alone who still wait."""

import asyncio
import shutil
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from probes.engine import batching as module
from probes.engine.base import BrokenEngineError, EngineOptions, EngineUnavailableError, Prompt
from probes.engine.batching import BatchingEngine
from probes.engine.cache import ScoreCache, key_of
from probes.engine.local import LocalEngine
from probes.engine.pace import Pace
from probes.engine.packing import Ids
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Hidden
from probes.engine.wire import BatchReport
from probes.reference import load_probe
from tests.support.architectures import SIZES
from tests.support.engines import Held, batching, soon, text, text_artifact
from tests.support.probes import D_MODEL, NANO_POOL, artifact

pytestmark = pytest.mark.anyio


@pytest.fixture
def held(tmp_path: Path) -> Held:
    return Held([text_artifact(tmp_path / "a"), text_artifact(tmp_path / "b", -1.0)])


@asynccontextmanager
async def busy(engine: BatchingEngine, held: Held) -> AsyncIterator[None]:
    """Inside, the thread computes a first prompt and everything else waits."""
    held.go.clear()
    first = asyncio.create_task(engine.score([text(1, "first")], soon()))
    await asyncio.sleep(0.02)
    yield
    held.go.set()
    await first


async def test_what_waits_together_is_computed_together_and_as_in_process(held: Held) -> None:
    reports: list[BatchReport] = []
    prompts = [text(n) for n in range(8)]
    async with batching(held, on_batch=reports.append) as engine:
        async with busy(engine, held):
            waiting = [asyncio.create_task(engine.score([one], soon())) for one in prompts]
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*waiting)
    expected = LocalEngine(held.artifacts).score(prompts)
    np.testing.assert_array_equal(np.concatenate([one.success for one in answers]), expected.success)
    assert np.isnan(answers[0].output_tokens).all()
    assert [report.prompts for report in reports] == [1, 8]
    assert reports[1].queue_s > 0.01
    assert reports[1].tokens == sum(one.tokens for one in prompts)


async def test_the_longest_wait_of_a_micro_batch_is_reported(held: Held) -> None:
    """Which need not be that of its most urgent prompt."""
    reports: list[BatchReport] = []
    async with batching(held, on_batch=reports.append) as engine:
        async with busy(engine, held):
            patient = asyncio.create_task(engine.score([text(2)], soon(90)))
            await asyncio.sleep(0.02)
            before = soon(0)
            await asyncio.sleep(0.2)
            after = soon(0)
            urgent = asyncio.create_task(engine.score([text(3)], soon(30)))
            await asyncio.sleep(0.02)
        await asyncio.gather(patient, urgent)
    assert [report.prompts for report in reports] == [1, 2]
    assert reports[1].queue_s >= after - before


async def test_padding_is_reported_where_prompts_are_padded(tmp_path: Path) -> None:
    """As those of architectures are that may not be packed."""
    folder = tmp_path / "nano-small"
    shutil.copytree(NANO_POOL / "nano-small", folder)
    config = GraniteConfig(**SIZES | {"hidden_size": D_MODEL["nano-small"]})
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    elsewhere: dict[str, Any] = {"probe_models": {"nano-small": str(folder)}, "allow": ["probe-model"]}
    served = [load_probe(artifact(tmp_path / "a").folder, **elsewhere)]
    reports: list[BatchReport] = []
    engine = BatchingEngine(lambda: LocalEngine(served, "cpu"), EngineOptions(), on_batch=reports.append)
    await engine.start()
    try:
        engine._queue.pace = Pace(0.0, 1e-9)
        long, short, alone = (Prompt((tuple(range(3, 3 + n)),)) for n in (40, 25, 30))
        await engine.score([long, short], soon())
        await engine.score([alone], soon())
    finally:
        await engine.close()
    assert [(report.tokens, report.padding_tokens) for report in reports] == [(65, 15), (30, 0)]


async def test_an_idle_engine_begins_with_a_prompt_at_once(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody else comes, the event loop is held up, the clock stands still, and no wait ends by itself."""
    idle, now = threading.Event(), time.monotonic()

    def waits(timeout: float | None = None) -> bool:
        idle.set()
        return wait()

    async with batching(held) as engine:
        wait = engine._change.wait
        async with busy(engine, held):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now))
            monkeypatch.setattr(engine._change, "wait", waits)
        assert await asyncio.to_thread(idle.wait, 30)
        held.begun.clear()
        waiting = asyncio.create_task(engine.score([text(1)], soon()))
        await asyncio.sleep(0)
        assert held.begun.wait(30)
        assert np.isfinite((await waiting).success).all()


async def test_equal_prompts_are_computed_once_and_kept(held: Held) -> None:
    found: list[str] = []
    async with batching(held, on_lookup=found.append) as engine:
        async with busy(engine, held):
            waiting = [asyncio.create_task(engine.score([text(3), text(4), text(3)], soon())) for _ in range(5)]
            await asyncio.sleep(0.02)
        answers = await asyncio.gather(*waiting)
        for _ in range(2):
            again = await engine.score([text(3)], soon())
            np.testing.assert_array_equal(again.success, answers[0].success[:1])
    assert held.computed == [[text(1, "first").text], [text(3).text, text(4).text]]
    assert Counter(found) == {"miss": 1 + 2, "shared": 1 + 4 * 3, "hit": 2}
    for answer in answers:
        np.testing.assert_array_equal(answer.success[0], answer.success[2])


async def test_the_cache_is_bounded_and_can_be_left_out(held: Held) -> None:
    for size, computed in ((2, 4), (0, 5)):
        async with batching(held, EngineOptions(cache_prompts=size)) as engine:
            for words in (1, 2, 2, 3, 1):
                await engine.score([text(words)], soon())
            assert len(held.computed) == computed


def test_the_cache_keeps_what_was_asked_for_last() -> None:
    cache, row = ScoreCache(2), np.zeros((3, 1))
    for key in (b"a", b"b"):
        cache.put(key, row)
    assert cache.get(b"a") is row
    cache.put(b"c", row)
    assert [cache.get(key) is row for key in (b"a", b"b", b"c")] == [True, False, True]
    assert len(cache) == 2


def test_different_prompts_have_different_keys() -> None:
    prompts = [
        Prompt(((1, 2), (3,))), Prompt(((1,), (2, 3))), Prompt(((1, 2, 3),)), Prompt(((1, 2),), "3"),
        Prompt(((), (1, 2, 3))), Prompt(((1, 2, 3), ())), Prompt((), "1"), Prompt((), ""),
    ]  # fmt: skip
    assert len({key_of(one) for one in prompts}) == len(prompts)


async def test_the_earliest_deadline_is_first(held: Held) -> None:
    async with batching(held) as engine:
        engine._queue.pace.fixed_s, engine._queue.pace.token_s = 0.0, 0.001  # each prompt alone
        async with busy(engine, held):
            words = {500: 90, 400: 60, 600: 30, 300: np.inf}
            waiting = [asyncio.create_task(engine.score([text(n)], soon(s))) for n, s in words.items()]
            await asyncio.sleep(0.02)
            # Somebody else wants the last one, at once.
            waiting.append(asyncio.create_task(engine.score([text(300)], soon(20))))
            await asyncio.sleep(0.02)
        await asyncio.gather(*waiting)
    assert [len(batch[0].split()) - 1 for batch in held.computed[1:]] == [300, 600, 400, 500]


async def test_who_is_too_late_or_gone_is_not_computed_for(held: Held) -> None:
    async with batching(held) as engine:
        with pytest.raises(EngineUnavailableError, match="before the deadline"):
            await engine.score([text(2)], soon(-1))
        async with busy(engine, held):
            late = asyncio.create_task(engine.score([text(2)], soon(0.03)))
            gone = asyncio.create_task(engine.score([text(3), text(4)], soon()))
            stays = asyncio.create_task(engine.score([text(4)], soon()))
            await asyncio.sleep(0.01)
            gone.cancel()
            with pytest.raises(EngineUnavailableError, match="before the deadline"):
                await late
        await stays
        assert len(engine._queue) == 0
        assert not engine._waiting
    assert held.computed[1:] == [[text(4).text]]


async def test_who_joins_a_prompt_that_is_given_up_has_the_time_that_was_asked_for(held: Held) -> None:
    """The thread has found that it is too late for it, and the loop has not heard of that yet."""
    async with batching(held) as engine:
        tell, unheard = engine._tell, asyncio.Event()

        def hold_back(what: Callable[..., object], *arguments: Any) -> None:
            tell(unheard.set) if what == engine._given_up else tell(what, *arguments)

        engine._tell = hold_back  # type: ignore[method-assign]  # for as long as this test runs
        with engine._change:
            late = engine._join(key_of(text(2)), text(2), soon(-1), soon(-2))
            engine._change.notify()
        await unheard.wait()
        waiting = asyncio.create_task(engine.score([text(2)], soon()))
        await asyncio.sleep(0)
        engine._given_up([late])
        assert np.isfinite((await waiting).success).all()
        assert not engine._waiting


async def test_a_prompt_whose_batch_fails_is_the_only_one_that_fails(held: Held) -> None:
    async with batching(held) as engine:
        async with busy(engine, held):
            prompts = [text(1), text(1, "poison"), text(2), text(1, "refused")]
            waiting = [asyncio.create_task(engine.score([one], soon())) for one in prompts]
            await asyncio.sleep(0.02)
        good, poison, other, refused = await asyncio.gather(*waiting, return_exceptions=True)
        assert str(poison) == "the engine failed on this prompt: ValueError: poison"
        assert str(refused) == "the engine refuses this prompt: not this one"
        expected = LocalEngine(held.artifacts).score([text(1), text(2)]).success
        np.testing.assert_array_equal([good.success[0], other.success[0]], expected)  # type: ignore[union-attr]


async def test_a_machine_out_of_memory_refuses_what_is_too_long_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With room for a hundred tokens at once: more are what torch says it cannot allocate."""
    served = LocalEngine([artifact(tmp_path / "a")], "cpu")
    rng = np.random.default_rng(0)
    *few, long = [Prompt((tuple(rng.integers(3, 600, size=size).tolist()),)) for size in (40, 50, 60, 70, 150)]
    expected = served.score(few).success
    forward, failed = ProbeModel._forward, []

    def too_little(model: ProbeModel, prompts: Sequence[Ids]) -> Hidden:
        if sum(map(len, prompts)) > 100:
            failed.append(len(prompts))
            torch.empty(2**60, dtype=torch.uint8)
        return forward(model, prompts)

    engine = BatchingEngine(lambda: served, EngineOptions(cache_prompts=0))
    await engine.start()
    monkeypatch.setattr(ProbeModel, "_forward", too_little)
    try:
        np.testing.assert_allclose((await engine.score(few, soon())).success, expected, atol=1e-6)
        assert max(failed) > 1
        for _ in range(2):
            answers = await asyncio.gather(
                *(engine.score([one], soon()) for one in (*few, long)), return_exceptions=True
            )
            assert "the engine refuses this prompt: cpu has no memory left for a prompt of 150" in str(answers.pop())
            found = [answer.success[0] for answer in answers]  # type: ignore[union-attr]
            np.testing.assert_allclose(found, expected, atol=1e-6)
    finally:
        await engine.close()


async def test_a_computation_without_end_ends_the_engine(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUNG_S", 0.05)
    async with batching(held) as engine:
        engine._queue.pace = Pace(0.0, 1e-9)
        held.go.clear()
        waiting = asyncio.create_task(engine.score([text(1)], soon()))
        with pytest.raises(BrokenEngineError, match="ten times as long as it should take"):
            await engine.finished()
        assert not engine.ready
        with pytest.raises(EngineUnavailableError, match="closed"):
            await engine.score([text(2)], soon())
        await engine.close()
        with pytest.raises(EngineUnavailableError, match="closed"):
            await waiting


async def test_a_broken_device_ends_the_engine_and_no_prompt_is_blamed(held: Held) -> None:
    async with batching(held) as engine:
        held.go.clear()
        waiting = [asyncio.create_task(engine.score([text(n, "breaks")], soon())) for n in (1, 2)]
        await asyncio.sleep(0.02)
        held.go.set()
        with pytest.raises(BrokenEngineError, match="device-side assert"):
            await engine.finished()
        assert not engine.ready
        await engine.close()
        for one in waiting:
            with pytest.raises(EngineUnavailableError, match="closed"):
                await one
