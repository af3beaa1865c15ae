"""What `pika train` fits on: everything that a kind of probe, and the baselines beside it, read of the problems."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from probes import statistics
from probes.base import Inputs, Probe, ProbeError
from probes.card import Dtype, Site
from probes.prompt import Renderer, bounded, new_pass
from probes.source import resolve_model

if TYPE_CHECKING:
    from probes.engine.reading import Reading


@dataclass(frozen=True)
class Material:
    inputs: Inputs
    renderer: Renderer | None = None
    """None: no probe model, not even its tokenizer."""
    sites: tuple[Site, ...] = ()
    """Of the inputs' activations, those among which a probe's is chosen."""
    statistics_site: Site | None = None
    """Where activation statistics are taken; None: no activations are read."""
    tried: dict[str, list[int]] = field(default_factory=dict)
    """The layers and positions of `sites`, for the card."""

    @property
    def candidates(self) -> Inputs:
        """The inputs without what is read for the statistics alone."""
        return replace(self.inputs, activations={site: self.inputs.activations[site] for site in self.sites})


@dataclass(frozen=True)
class Plan:
    """What is to be read of n problems, rendered and tokenised."""

    material: Material
    """All but activations."""
    prompts: Sequence[Sequence[int]] = ()
    reading: "Reading | None" = None
    """None: no activations are read."""


def gather(
    plan: Plan,
    device: str = "auto",
    cache: Path | None = None,
    on_batch: Callable[[int], None] = lambda n: None,
) -> Material:
    """
    Args:
        cache: see `offline.activations.harvest`.

    Raises:
        ProbeError: the probe model cannot be loaded.
    """
    if plan.reading is None or plan.material.renderer is None:
        return plan.material
    from offline.activations import harvest  # torch: text probes need none

    found = harvest(plan.material.renderer.pass_, plan.prompts, plan.reading, device, cache, on_batch)
    return replace(plan.material, inputs=replace(found, texts=plan.material.inputs.texts))


def plan(
    problems: Sequence[str],
    kind: type[Probe],
    probe_model: str | None,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    next_token: bool = False,
    dtype: Dtype = "float32",
) -> Plan:
    """Render and tokenise n problems, as far as this kind of probe needs it.

    Args:
        probe_model: a folder or a Hub id; may be None for probes that read text alone.
        layers, positions: to try; None: all layers, all end-of-instruction tokens.

    Raises:
        ProbeError: the probe model is missing or lacks a tokenizer, or has no such layer or position.
    """
    if kind.reads in ("text", "length"):
        for option, asked in (("--layers", layers), ("--positions", positions)):
            if asked is not None:
                raise ProbeError(f"{option}: a {kind.kind} probe reads no activations; leave it out")
    texts = [bounded(problem) for problem in problems]
    if probe_model is None:
        if kind.reads != "text":
            raise ProbeError(f"--probe-model is missing: a {kind.kind} probe reads the tokens or activations of one")
        # No tokenizer: the length baseline counts characters.
        return Plan(Material(Inputs(texts=texts, prompt_tokens=np.array([len(problem) for problem in problems]))))
    renderer = Renderer(new_pass(resolve_model(probe_model), dtype))
    prompts = [renderer.render([{"role": "user", "content": problem}]).token_ids for problem in problems]
    inputs = Inputs(texts=texts, prompt_tokens=np.array([len(ids) for ids in prompts]))
    if kind.reads in ("text", "length"):
        return Plan(Material(inputs, renderer))
    from probes.engine.loading import n_layers  # torch: text probes need none
    from probes.engine.reading import Reading

    last_layer = n_layers(renderer.pass_)
    tried = {"layers": _layers(layers, last_layer, renderer)}
    if kind.reads == "sequence":
        if positions is not None:
            raise ProbeError(f"--positions: a {kind.kind} probe reads all of a prompt's tokens")
        sites = [Site(layer=layer, position=-1) for layer in tried["layers"]]
    else:
        tried["positions"] = _positions(positions, min(map(len, prompts)), renderer)
        sites = [Site(layer=layer, position=position) for layer in tried["layers"] for position in tried["positions"]]
    looked_at = statistics.site_of(last_layer)
    read_at = tuple(dict.fromkeys([*sites, looked_at]))
    reading = Reading(read_at, tuple(tried["layers"]) if kind.reads == "sequence" else (), next_token)
    return Plan(Material(inputs, renderer, tuple(sites), looked_at, tried), prompts, reading)


def _layers(asked: Sequence[int] | None, last: int, renderer: Renderer) -> list[int]:
    layers = list(asked or range(last + 1))
    if layers[0] < 0 or layers[-1] > last:
        raise ProbeError(
            f"--layers {layers[0]}..{layers[-1]}: {renderer.pass_.probe_model} has layers 0, its embeddings, to {last}"
        )
    return layers


def _positions(asked: Sequence[int] | None, shortest: int, renderer: Renderer) -> list[int]:
    positions = list(asked or range(-len(renderer.eoi_tokens), 0))
    if positions[-1] >= 0 or positions[0] < -shortest:
        raise ProbeError(
            f"--positions {positions[0]}..{positions[-1]}: they count from the prompt's end, from -1 down to "
            f"-{shortest}, the length of the shortest prompt"
        )
    return positions
