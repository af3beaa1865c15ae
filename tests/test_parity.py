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

from probes.base import Inputs
from probes.card import Dtype, Pass, Recipe, Site
from probes.engine.attention_alone import IN_BLOCKS, MANY
from probes.engine.next_token import next_token_statistics
from probes.engine.prefixes import LEAST
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from tests.support.architectures import ARCHITECTURES, LONGEST, SIZES, VOCABULARY, save

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
POSITIONS = (-5, -4, -3, -2, -1)
DEPTH = SIZES["num_hidden_layers"]
Ids = tuple[int, ...]
Exact = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Hidden states, (n, layers, positions, d_model), and the statistics of the next token, (n, statistics)."""


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
    return reference_with_statistics(folder, prompts, dtype)[0]


def reference_with_statistics(folder: Path, prompts: Sequence[Ids], dtype: torch.dtype = torch.float32) -> Exact:
    """The same, and what its logits tell of the next token."""
    fresh = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()
    found, statistics = [], []
    with torch.no_grad():
        for prompt in prompts:
            model = deepcopy(fresh)  # `dynamic` rotations remember the longest prompt
            output = model(torch.tensor([prompt]), output_hidden_states=True, use_cache=False)
            at = [max(0, len(prompt) + position) for position in POSITIONS]
            found.append(np.stack([layer[0, at].float().numpy() for layer in output.hidden_states]))
            statistics.append(next_token_statistics(output.logits[:, -1])[0].numpy())
    return np.stack(found), np.stack(statistics)


@pytest.fixture(scope="module")
def exact(folder: Path) -> Exact:
    """Of the prompts that begin alike."""
    return reference_with_statistics(folder, sharing())


def ours(model: ProbeModel, prompts: Sequence[Ids]) -> NDArray[np.float32]:
    return activations(model.read(prompts), model.reading)


def activations(read: Inputs, reading: Reading) -> NDArray[np.float32]:
    """(n, sites, d_model)"""
    return np.stack([read.activations[site] for site in reading.sites], axis=1)


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


@pytest.mark.parametrize("next_token", [False, True])
def test_shared_beginnings_change_nothing(next_token: bool, folder: Path, device: str, exact: Exact) -> None:
    """They are computed once, where prompts are packed; the first two prompts tell that they are shared."""
    expected, statistics = exact
    reading = Reading(sites(1, DEPTH), next_token=next_token)
    model = ProbeModel(pass_of(folder), reading, device, reuse_prefixes=True)
    for rows in ([0], [1, 2], range(len(sharing()))):
        read = model.read([sharing()[row] for row in rows])
        found = activations(read, reading).reshape(len(rows), 2, len(POSITIONS), -1)
        assert difference(found, expected[rows][:, [1, DEPTH]]) < 1e-5
        if next_token:
            assert read.next_token is not None
            np.testing.assert_allclose(read.next_token, statistics[rows], atol=1e-5, rtol=1e-5)
    assert model.reused_tokens > 0 or not reuses(model)


def test_bfloat16_is_right_within_its_rounding(folder: Path, device: str) -> None:
    """That is: as far from exact numbers as Transformers is in bfloat16."""
    exact = reference(folder, prompts())
    theirs = reference(folder, prompts(), torch.bfloat16)
    for layer in range(1, DEPTH + 1):
        model = ProbeModel(pass_of(folder, "bfloat16"), Reading(sites(layer)), device)
        assert rounding(ours(model, prompts()), exact[:, layer]) < 1.2 * rounding(theirs[:, layer], exact[:, layer])


def test_shared_beginnings_are_right_in_bfloat16_within_its_rounding(folder: Path, device: str, exact: Exact) -> None:
    expected, statistics = exact
    theirs, their_statistics = reference_with_statistics(folder, sharing(), torch.bfloat16)
    reading = Reading(sites(DEPTH), next_token=True)
    model = ProbeModel(pass_of(folder, "bfloat16"), reading, device, reuse_prefixes=True)
    for _ in range(2):  # the second time, every beginning that is shared is known
        before = model.reused_tokens
        read = model.read(sharing())
    assert model.reused_tokens > before or not reuses(model)
    # Looser than above: these are few prompts, and much alike.
    found, expected, theirs = activations(read, reading), expected[:, DEPTH], theirs[:, DEPTH]
    assert rounding(found, expected) < 1.5 * rounding(theirs, expected)
    assert read.next_token is not None
    assert rounding(read.next_token, statistics) < 2 * rounding(their_statistics, statistics)


def reuses(model: ProbeModel) -> bool:
    """Prompts that must not be read together share nothing; nor do padded ones."""
    return model.longest_alike is None and model._forward_pass.packs


def rounding(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Root mean square of what it is off."""
    return float(np.sqrt(np.mean((found - exact) ** 2)))
