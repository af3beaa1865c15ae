"""Harvests what probes are trained on: activations at many sites, with the code that serves them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from probes.base import Activations
from probes.card import Pass, Site
from probes.engine.probe_model import ProbeModel


@dataclass(frozen=True)
class Harvest:
    """Activations of n prompts at every site of layers x positions."""

    values: Activations
    """(n, layers, positions, d_model)"""
    layers: tuple[int, ...]
    positions: tuple[int, ...]

    def at(self, site: Site) -> Activations:
        """Activations at one site, (n, d_model)."""
        found: Activations = self.values[:, self.layers.index(site.layer), self.positions.index(site.position)]
        return found


def harvest(
    pass_: Pass,
    prompts: Sequence[Sequence[int]],
    layers: Sequence[int],
    positions: Sequence[int],
    device: str = "auto",
    on_batch: Callable[[int], None] = lambda n: None,
) -> Harvest:
    """Run the probe model over n prompts (token ids).

    Args:
        on_batch: called after each micro-batch with its number of prompts, for progress bars.

    Raises:
        ProbeError: the probe model cannot be loaded, or has no such layer.
    """
    model = ProbeModel(pass_, layers, device)
    sites = [Site(layer=layer, position=position) for layer in layers for position in positions]
    found = model.activations(prompts, sites, on_batch)
    shape = (len(prompts), len(layers), len(positions), model.d_model)
    return Harvest(found.reshape(shape), tuple(layers), tuple(positions))
