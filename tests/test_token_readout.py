"""Probes that read all prompt tokens compute what the research code computes, and descend along true gradients."""

from collections.abc import Callable
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.base import Inputs, ProbeError, Sequences, load
from probes.card import Site
from probes.token_readout import TokenReadout

D_MODEL = 6
LENGTHS = (1, 2, 39, 40, 41, 130)
RNG = np.random.default_rng(0)
SEQUENCES = Sequences(
    RNG.normal(size=(sum(LENGTHS), D_MODEL)).astype(np.float32) * 3, np.cumsum(LENGTHS) - LENGTHS, np.array(LENGTHS)
)
WEIGHT, QUERY = (RNG.normal(size=D_MODEL).astype(np.float32) for _ in range(2))
BIAS = np.array([0.7], dtype=np.float32)


def attn(x: Tensor, weight: Tensor, query: Tensor) -> Tensor:
    pooled = torch.softmax(x @ query / D_MODEL**0.5, dim=0) @ x
    return pooled @ weight + BIAS[0]


def largest(x: Tensor, weight: Tensor, query: Tensor) -> Tensor:
    return (x @ weight + BIAS[0]).max()


def softmax(x: Tensor, weight: Tensor, query: Tensor) -> Tensor:
    logits = x @ weight + BIAS[0]
    return (torch.softmax(logits / 5, dim=0) * logits).sum()


def rolling_max(x: Tensor, weight: Tensor, query: Tensor) -> Tensor:
    logits = x @ weight + BIAS[0]
    return logits.unfold(0, min(40, len(x)), 1).mean(dim=1).max()


REFERENCES = {
    "attn": attn,
    "linear_then_max": largest,
    "linear_then_softmax": softmax,
    "linear_then_rolling_max": rolling_max,
}
every_readout = pytest.mark.parametrize(("kind", "reference"), REFERENCES.items())
Reference = Callable[[Tensor, Tensor, Tensor], Tensor]


def probe_of(kind: str) -> TokenReadout:
    made = cast(type[TokenReadout], load(kind))
    return made([WEIGHT, QUERY][: len(made.readouts)], BIAS, Site(layer=3, position=None))


@every_readout
def test_outputs_are_the_research_codes(kind: str, reference: Reference) -> None:
    outputs = probe_of(kind).raw(Inputs(sequences={3: SEQUENCES}))
    weight, query = (torch.tensor(one, dtype=torch.float64) for one in (WEIGHT, QUERY))
    for output, start, length in zip(outputs, SEQUENCES.starts, SEQUENCES.lengths, strict=True):
        x = torch.tensor(SEQUENCES.values[start : start + length], dtype=torch.float64)
        assert output == pytest.approx(float(reference(x, weight, query)), rel=1e-9)


@every_readout
def test_derivatives_are_those_of_autograd(kind: str, reference: Reference) -> None:
    probe = probe_of(kind)
    weights = np.stack([WEIGHT, QUERY.astype(np.float64) / D_MODEL**0.5], axis=1)[:, : len(probe.readouts)]
    for start, length in zip(SEQUENCES.starts, SEQUENCES.lengths, strict=True):
        x = SEQUENCES.values[start : start + length].astype(np.float64)
        # Two probes at once, of which the second one's readouts are another's.
        tokens = np.stack([x @ weights, x[::-1] @ weights], axis=1)  # (T, 2, readouts)
        tokens[:, :, 0] += BIAS[0]
        _, derivative = probe.pool(tokens)
        weight, query = (torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (WEIGHT, QUERY))
        reference(torch.tensor(x), weight, query).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        np.testing.assert_allclose(x.T @ derivative[:, 0, 0], weight.grad, rtol=1e-9, atol=1e-12)
        if "query" in probe.readouts:
            np.testing.assert_allclose(x.T @ derivative[:, 0, 1] / D_MODEL**0.5, query.grad, rtol=1e-9, atol=1e-12)


@every_readout
def test_a_memory_map_and_any_order_of_prompts_will_do(kind: str, reference: Reference, tmp_path: object) -> None:
    file = f"{tmp_path}/values.npy"
    np.save(file, SEQUENCES.values)
    mapped = Sequences(np.load(file, mmap_mode="r"), SEQUENCES.starts, SEQUENCES.lengths)
    expected = probe_of(kind).raw(Inputs(sequences={3: SEQUENCES}))
    order = np.array([5, 0, 3, 3])
    found = probe_of(kind).raw(Inputs(sequences={3: mapped}).rows(order))
    assert found.tobytes() == expected[order].tobytes()


def test_another_layer_is_named() -> None:
    with pytest.raises(ProbeError, match="layer 3"):
        probe_of("attn").raw(Inputs(sequences={2: SEQUENCES}))
