"""Probes that read all prompt tokens give the same pooled on the device as from activations on the host."""

from typing import cast

import numpy as np

from probes.base import load
from probes.card import Pass, Recipe, Site
from probes.engine.probe_model import ProbeModel
from probes.engine.reading import Reading
from probes.token_readout import TokenReadout
from tests.support.probes import NANO_POOL

KINDS = ("attn", "linear_then_max", "linear_then_softmax", "linear_then_rolling_max")
PASS = Pass(probe_model=str(NANO_POOL / "nano-medium"), recipe=Recipe(chat_template_sha256=""))
D_MODEL = 96
LENGTHS = (1, 2, 39, 130, 40, 41, 7)


def prompts() -> list[tuple[int, ...]]:
    rng = np.random.default_rng(0)
    return [tuple(rng.integers(3, 600, size=n).tolist()) for n in LENGTHS]


def probe(kind: str, layer: int, seed: int) -> TokenReadout:
    rng = np.random.default_rng(seed)
    made = cast(type[TokenReadout], load(kind))
    weights = [rng.normal(size=D_MODEL).astype(np.float32) for _ in made.readouts]
    return made(weights, rng.normal(size=1).astype(np.float32), Site(layer=layer, position=None))


def test_pooled_on_the_device_as_from_activations() -> None:
    """All kinds, two layers, prompts of lengths about the window's, in one batch: what one reads, no other sees."""
    probes = tuple(probe(kind, layer, seed) for seed, kind in enumerate(KINDS) for layer in (1, 3))
    whole = ProbeModel(PASS, Reading(sequence_layers=(1, 3)), "cpu").read(prompts())
    pooled = ProbeModel(PASS, Reading(pooled=probes), "cpu").read(prompts())
    assert not pooled.sequences
    for one in probes:
        np.testing.assert_allclose(one.raw(pooled), one.raw(whole), rtol=1e-5, atol=1e-5)


def test_beside_a_probe_that_reads_one_position() -> None:
    site, one = Site(layer=4, position=-2), probe("attn", 2, seed=9)
    both = ProbeModel(PASS, Reading((site,), pooled=(one,)), "cpu").read(prompts())
    apart = ProbeModel(PASS, Reading((site,)), "cpu").read(prompts())
    alone = ProbeModel(PASS, Reading(pooled=(one,)), "cpu").read(prompts())
    np.testing.assert_allclose(both.activations[site], apart.activations[site], atol=1e-5)
    np.testing.assert_allclose(one.raw(both), one.raw(alone), rtol=1e-5)
