"""What a probe model refuses, and what it does where something is lacking; it goes on afterwards."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GraniteConfig

from probes.base import ProbeError
from probes.card import Pass, Recipe, Site
from probes.engine import probe_model
from probes.engine.base import BrokenEngineError
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from tests.support.architectures import SIZES, save

SITE = Site(layer=2, position=-1)
PROMPTS = [tuple(range(3, 3 + n)) for n in (40, 7, 90, 12)]


def pass_of(folder: Path) -> Pass:
    return Pass(probe_model=str(folder), recipe=Recipe(chat_template_sha256=""))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save("llama", tmp_path_factory.mktemp("llama"))


def test_prompts_that_it_cannot_read_are_refused(folder: Path) -> None:
    model = ProbeModel(pass_of(folder), Reading((SITE,)), "cpu")
    with pytest.raises(ProbeError, match="has no tokens"):
        model.read([(5, 6), ()])
    for wrong in (640, -1):
        with pytest.raises(ProbeError, match="has 640: render prompts with the probe model's own tokenizer"):
            model.read([(5, wrong)])
    assert np.isfinite(model.read(PROMPTS).activations[SITE]).all()


@pytest.mark.parametrize("lacking", ["layers.1.mlp.up_proj", "layers.2.mlp.up_proj"])
def test_a_checkpoint_must_hold_all_that_is_read(folder: Path, tmp_path: Path, lacking: str) -> None:
    """Of blocks that are not built, nothing is read."""
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if lacking not in name}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if "layers.2" in lacking:
        read = ProbeModel(pass_of(tmp_path), Reading((SITE,)), "cpu").read(PROMPTS)
        assert np.isfinite(read.activations[SITE]).all()
        return
    with pytest.raises(ProbeError, match=r"lacks tensors, layers\.1\.mlp\.up_proj"):
        ProbeModel(pass_of(tmp_path), Reading((SITE,)), "cpu")


def test_a_micro_batch_that_is_too_large_is_halved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ProbeModel(pass_of(folder), Reading((SITE,)), "cpu")
    expected = model.read(PROMPTS).activations[SITE]
    forward = ProbeModel._forward
    room = 100

    def small(self: ProbeModel, prompts: Any) -> Any:
        if sum(map(len, prompts)) > room:
            raise torch.OutOfMemoryError("no memory left")
        return forward(self, prompts)

    monkeypatch.setattr(ProbeModel, "_forward", small)
    np.testing.assert_allclose(model.read(PROMPTS).activations[SITE], expected, atol=1e-5)
    room = 50
    with pytest.raises(ProbeError, match="no memory left for a prompt of 90 tokens"):
        model.read(PROMPTS)
    assert len(model.read(PROMPTS[:2]).activations[SITE]) == 2


def test_an_error_of_the_device_that_is_no_lack_of_memory_breaks_the_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays with the process; a lack of memory, which some calls tell in the same way, does not."""
    model = ProbeModel(pass_of(folder), Reading((SITE,)), "cpu")
    expected = model.read(PROMPTS).activations[SITE]
    forward, said = ProbeModel._forward, "out of memory"

    def fails(self: ProbeModel, prompts: Any) -> Any:
        if len(prompts) > 1:
            raise torch.AcceleratorError(f"CUDA error: {said}")
        return forward(self, prompts)

    monkeypatch.setattr(ProbeModel, "_forward", fails)
    np.testing.assert_allclose(model.read(PROMPTS).activations[SITE], expected, atol=1e-5)
    said = "device-side assert triggered"
    with pytest.raises(BrokenEngineError, match="CUDA error: device-side assert triggered"):
        model.read(PROMPTS)


def test_other_architectures_are_padded_and_the_log_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(GraniteConfig(**SIZES), dtype=torch.float32).save_pretrained(tmp_path)
    with caplog.at_level(logging.WARNING):
        model = ProbeModel(pass_of(tmp_path), Reading((SITE,)), "cpu", reuse_prefixes=True)
    assert "is of type granite, whose packing is not tested: its prompts are padded" in caplog.text
    together = model.read(PROMPTS).activations[SITE]
    assert model.padding_tokens == max(map(len, PROMPTS)) * len(PROMPTS) - sum(map(len, PROMPTS))
    alone = np.concatenate([model.read([prompt]).activations[SITE] for prompt in PROMPTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_what_is_computed_fills_a_micro_batch_not_what_is_reused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_model, "CPU_MICRO_BATCH_TOKENS", 256)
    model = ProbeModel(pass_of(folder), Reading((SITE,)), "cpu", reuse_prefixes=True)
    system = [1 + i % 7 for i in range(80)]
    sizes: list[int] = []

    def questions(first: int) -> list[list[int]]:
        return [[*system, *range(i, i + 10)] for i in range(first, first + 20)]

    model.read(questions(10), sizes.append)
    assert sizes == [2] * 10, "nobody knew that the system prompt is shared"
    sizes.clear()
    found = model.read(questions(40), sizes.append).activations[SITE]
    assert sizes == [20]
    alone = ProbeModel(pass_of(folder), Reading((SITE,)), "cpu").read(questions(40)).activations[SITE]
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_it_takes_no_more_threads_than_cores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_model, "SMALL_PARAMETERS", 0)
    monkeypatch.setattr(probe_model, "cores", lambda: 1)
    model = ProbeModel(pass_of(folder), Reading((SITE,)), "cpu")
    seen: list[int] = []
    forward = ProbeModel._forward

    def watched(self: ProbeModel, prompts: Any) -> Any:
        seen.append(torch.get_num_threads())
        return forward(self, prompts)

    monkeypatch.setattr(ProbeModel, "_forward", watched)
    before = torch.get_num_threads()
    model.read(PROMPTS)
    assert seen == [1]
    assert torch.get_num_threads() == before
