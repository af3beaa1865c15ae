"""Made-up problems that any kind of probe can learn from: one hidden number decides success, and all inputs show it."""

from typing import Any

import numpy as np

from probes.base import Examples, Inputs, Probe, Sequences
from probes.card import ProbeCard, Site
from probes.logistic import sigmoid
from tests.support.probes import card

D_MODEL = 12
SITES = [Site(layer=layer, position=position) for layer in (1, 2) for position in (-2, -1)]
LAYERS = (1, 2)
WORDS = {True: ("sum", "of 7", "and"), False: ("Proof", "lemma 3", "norm")}


def examples(n: int, seed: int, noise: bool = False) -> Examples:
    """n problems and two arms with 8 rollouts each; layer 2 knows more than layer 1.

    Args:
        noise: labels that have nothing to do with the inputs.
    """
    rng = np.random.default_rng(seed)
    ease = rng.normal(size=n)
    directions = np.random.default_rng(1).normal(size=(3, D_MODEL))
    lengths = np.clip(30 - 8 * ease + 3 * rng.normal(size=n), 3, 80).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    owner = np.repeat(np.arange(n), lengths)
    sequences, activations = {}, {}
    for layer in LAYERS:
        tokens = rng.normal(size=(len(owner), D_MODEL)) * 2 / layer
        tokens += ease[owner, None] * directions[layer]
        sequences[layer] = Sequences(tokens.astype(np.float32), starts, lengths)
        for site in (site for site in SITES if site.layer == layer and site.position is not None):
            activations[site] = sequences[layer].values[starts + lengths + (site.position or 0)]
    inputs = Inputs(
        texts=[_text(one, rng) for one in ease],
        prompt_tokens=lengths,
        activations=activations,
        next_token=rng.normal(size=(n, 11)) + ease[:, None],
        sequences=sequences,
    )
    chances = sigmoid(np.stack([2.5 * ease, 2.5 * ease + 1], axis=1))
    labels = rng.binomial(8, chances) / 8
    return Examples(inputs, rng.permutation(labels) if noise else labels)


def card_of(probe: Probe, **changes: Any) -> ProbeCard:
    """A card that fits a probe of these examples."""
    fields: dict[str, Any] = {
        "kind": probe.kind,
        "site": probe.site,
        "d_model": D_MODEL if probe.site else None,
        "parameters": probe.parameters(),
        "files": ["config.json", "probe.safetensors", *probe.files()],
    }
    if probe.kind == "tfidf":
        fields |= {"pass": None, "canary_prompt": None, "canary_token_ids": None}
    return card(**fields | changes)


def _text(ease: float, rng: np.random.Generator) -> str:
    return " ".join(str(rng.choice(WORDS[bool(rng.random() < sigmoid(np.float64(2 * ease)))])) for _ in range(12))
