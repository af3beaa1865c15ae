"""What is to be read of every prompt, and how it is taken from hidden states."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.card import Site
from probes.token_readout import TokenReadout


@dataclass(frozen=True)
class Reading:
    """What is to be read of every prompt."""

    sites: tuple[Site, ...] = ()
    """Each with a position."""
    sequence_layers: tuple[int, ...] = ()
    """Layers of which all prompt tokens' activations are handed out."""
    next_token: bool = False
    """Next-token statistics, which need the full depth and the LM head."""
    pooled: tuple[TokenReadout, ...] = ()
    """Probes that read all prompt tokens, and whose outputs alone are handed out."""

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted({*(site.layer for site in self.sites), *self.whole_layers}))

    @property
    def whole_layers(self) -> frozenset[int]:
        """Layers that are needed of all prompt tokens."""
        return frozenset((*self.sequence_layers, *(probe.site.layer for probe in self.pooled)))

    @property
    def tail(self) -> int:
        """How many of a prompt's last tokens the sites lie in."""
        return max((-site.position for site in self.sites if site.position is not None), default=1)


@dataclass(frozen=True)
class Layer:
    """One layer's hidden states of several prompts."""

    values: Tensor
    """(rows, d_model)"""
    starts: Tensor
    """Row of each prompt's first token that is there, (batch,)."""
    ends: Tensor
    """Row after each prompt's last token, (batch,)."""

    def at(self, position: int) -> Tensor:
        """(batch, d_model); the first token where the prompt is too short."""
        return self.values[torch.maximum(self.starts, self.ends + position)]


@dataclass(frozen=True)
class Hidden:
    """What a forward pass found."""

    layers: Mapping[int, Layer]
    logits: Tensor | None = None
    """The next token's, (batch, vocabulary)."""


def gather(hidden: Hidden, sites: tuple[Site, ...]) -> Tensor:
    """(batch, sites, d_model)"""
    return torch.stack([hidden.layers[site.layer].at(site.position or 0) for site in sites], dim=1)
