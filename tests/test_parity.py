"""Packed activations equal Transformers' own of each prompt alone, for every architecture family that is packed; padded
ones, for two others."""

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from probes.card import Dtype, Pass, Recipe, Site
from probes.engine.attention_alone import IN_BLOCKS, MANY
from probes.engine.prefixes import LEAST
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from tests.support.architectures import ARCHITECTURES, LONGEST, SIZES, VOCABULARY, save

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
POSITIONS = (-5, -4, -3, -2, -1)
DEPTH = SIZES["num_hidden_layers"]
Ids = tuple[int, ...]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def pass_of(folder: Path, dtype: Dtype = "float32") -> Pass:
    return Pass(probe_model=str(folder), dtype=dtype, recipe=Recipe(chat_template_sha256=""))


def prompts() -> list[Ids]:
    """Of mixed lengths, from one token on, most of them longer than the window; some that attend in blocks.
    One is as long as can be."""
    rng = np.random.default_rng(0)
    most = SIZES["max_position_embeddings"]
    lengths = [1, 2, 4, LONGEST, *rng.integers(5, LONGEST, size=8), 41, 40, 40, IN_BLOCKS[0], most]
    return [tuple(rng.integers(3, VOCABULARY, size=n).tolist()) for n in lengths]


def sharing() -> list[Ids]:
    """Prompts that begin alike, as far as different tokens; the last goes on for so long that it attends otherwise."""
    rng = np.random.default_rng(1)
    system = rng.integers(3, VOCABULARY, size=100).tolist()
    parts = [(100 - i, 12 + i) for i in range(6)] + [(LEAST, MANY)]
    return [(*system[:shared], *rng.integers(3, VOCABULARY, size=own).tolist()) for shared, own in parts]


def reference(folder: Path, prompts: Sequence[Ids], dtype: torch.dtype = torch.float32) -> NDArray[np.float32]:
    """Transformers' hidden states of each prompt alone: (n, layers, positions, d_model)."""
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    found = []
    with torch.no_grad():
        for prompt in prompts:
            model = deepcopy(fresh)  # `dynamic` rotations remember the longest prompt
            hidden = model(torch.tensor([prompt]), output_hidden_states=True, use_cache=False).hidden_states
            at = [max(0, len(prompt) + position) for position in POSITIONS]
            found.append(np.stack([layer[0, at].float().numpy() for layer in hidden]))
    return np.stack(found)


def ours(model: ProbeModel, prompts: Sequence[Ids]) -> NDArray[np.float32]:
    read = model.read(prompts).activations
    return np.stack([read[site] for site in model.reading.sites], axis=1)


def sites(*layers: int) -> tuple[Site, ...]:
    return tuple(Site(layer=layer, position=position) for layer in layers for position in POSITIONS)


def difference(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """The largest, relative to the vector's size."""
    size = np.sqrt((expected.astype(np.float64) ** 2).mean(axis=-1, keepdims=True))
    return float((np.abs(found - expected) / size).max())


def test_every_layer_equals_transformers(folder: Path, device: str) -> None:
    expected = reference(folder, prompts())
    for deepest in range(DEPTH + 1):
        model = ProbeModel(pass_of(folder), Reading(sites(*range(deepest + 1))), device)
        found = ours(model, prompts()).reshape(len(prompts()), deepest + 1, len(POSITIONS), -1)
        assert difference(found, expected[:, : deepest + 1]) < 1e-5
        # One layer alone takes another way out of the model; so do all tokens of it, and the next token.
        alone = ProbeModel(pass_of(folder), Reading(sites(deepest)[-1:], (deepest,), next_token=deepest == 1), device)
        assert difference(ours(alone, prompts())[:, 0], expected[:, deepest, -1]) < 1e-5


def test_shared_beginnings_change_nothing(folder: Path, device: str) -> None:
    """They are computed once, where prompts are packed; the first two prompts tell that they are shared."""
    expected = reference(folder, sharing())
    model = ProbeModel(pass_of(folder), Reading(sites(1, DEPTH)), device, reuse_prefixes=True)
    for some in (sharing()[:1], sharing()[1:3], sharing()):
        found = ours(model, some).reshape(len(some), 2, len(POSITIONS), -1)
        rows = [sharing().index(prompt) for prompt in some]
        assert difference(found, expected[rows][:, [1, DEPTH]]) < 1e-5
    assert model.reused_tokens > 0 or model.longest_alike is not None or not model._forward_pass.packs


def test_bfloat16_is_right_within_its_rounding(folder: Path, device: str) -> None:
    """That is: as far from exact numbers as Transformers is in bfloat16."""
    exact = reference(folder, prompts())
    theirs = reference(folder, prompts(), torch.bfloat16)
    for layer in range(1, DEPTH + 1):
        model = ProbeModel(pass_of(folder, "bfloat16"), Reading(sites(layer)), device)
        pairs = ((found, exact[:, layer]) for found in (ours(model, prompts()), theirs[:, layer]))
        error, rounding = (np.sqrt(np.mean((found - expected) ** 2)) for found, expected in pairs)
        assert error < 1.2 * rounding, layer
