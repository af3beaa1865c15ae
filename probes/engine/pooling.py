"""Probes that read all prompt tokens, pooled where the activations are: one number of each prompt leaves the device.

The rules are those of the probes' own `pool`, for many prompts side by side instead of one after the other.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from probes import linear_then_rolling_max, linear_then_softmax
from probes.engine.reading import Hidden, Layer
from probes.token_readout import TokenReadout


class Pooling:
    """The probes' weights, on the device."""

    def __init__(self, probes: Sequence[TokenReadout], device: torch.device) -> None:
        self._probes = probes
        self._columns: dict[int, list[int]] = defaultdict(list)
        """Indices of the probes by layer."""
        for index, probe in enumerate(probes):
            self._columns[probe.site.layer].append(index)
        self._weights = {
            layer: torch.cat([torch.from_numpy(probes[i].weights) for i in columns], dim=1).float().to(device)
            for layer, columns in self._columns.items()
        }  # (d_model, readouts of all its probes)

    def __call__(self, hidden: Hidden) -> Tensor:
        """Uncalibrated outputs, (batch, probes), in double precision."""
        outputs: list[Tensor] = [torch.empty(0)] * len(self._probes)
        for layer, columns in self._columns.items():
            tokens, real = _side_by_side(hidden.layers[layer], self._weights[layer])
            sizes = [len(self._probes[i].readouts) for i in columns]
            for i, read in zip(columns, torch.split(tokens, sizes, dim=2), strict=True):
                logits = read[:, :, 0] + self._probes[i].bias
                outputs[i] = RULES[self._probes[i].kind](logits, read[:, :, -1], real)
        return torch.stack(outputs, dim=1)


def _side_by_side(layer: Layer, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Readouts of prompts padded to the longest, (batch, T, readouts), and which are of a token, (batch, T)."""
    read = (layer.values.float() @ weights).double()
    lengths = layer.ends - layer.starts
    at = torch.arange(int(lengths.max()), device=read.device)
    real = at < lengths[:, None]
    return read[torch.where(real, layer.starts[:, None] + at, 0)], real


def _attn(logits: Tensor, scores: Tensor, real: Tensor) -> Tensor:
    share = torch.softmax(scores.masked_fill(~real, -torch.inf), dim=1)
    return (share * logits).sum(dim=1)


def _max(logits: Tensor, _: Tensor, real: Tensor) -> Tensor:
    return logits.masked_fill(~real, -torch.inf).amax(dim=1)


def _softmax(logits: Tensor, _: Tensor, real: Tensor) -> Tensor:
    return _attn(logits, logits / linear_then_softmax.TEMPERATURE, real)


def _rolling_max(logits: Tensor, _: Tensor, real: Tensor) -> Tensor:
    lengths = real.sum(dim=1, keepdim=True)
    size = lengths.clamp(max=linear_then_rolling_max.WINDOW)  # (batch, 1)
    sums = torch.nn.functional.pad(logits.masked_fill(~real, 0).cumsum(dim=1), (1, 0))  # (batch, T + 1)
    ends = torch.arange(sums.shape[1], device=sums.device).expand_as(sums)
    means = (sums - sums.gather(1, (ends - size).clamp(min=0))) / size  # of the window that ends there
    return means.masked_fill((ends < size) | (ends > lengths), -torch.inf).amax(dim=1)


RULES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "attn": _attn,
    "linear_then_max": _max,
    "linear_then_softmax": _softmax,
    "linear_then_rolling_max": _rolling_max,
}
"""By kind: readouts with bias, the last readouts, which of them are of a token, (batch, T) each -> (batch,)."""
