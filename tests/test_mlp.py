"""`mlp` learns what no linear probe can, finds what to read, and reads next-token statistics."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.base import Examples, Inputs, ProbeError
from probes.card import Site
from probes.linear_eoi import LinearEoi
from probes.measures import auroc
from probes.mlp import Mlp

SITES = [Site(layer=layer, position=-1) for layer in range(3)]


def problems(n: int, seed: int, next_token: bool = False) -> Examples:
    """Success depends on two directions of layer 2 as by exclusive or, and a little on one of them alone."""
    rng = np.random.default_rng(seed)
    x = {site: rng.normal(size=(n, 8)).astype(np.float32) * 5 + 3 for site in SITES}
    x[SITES[0]] = np.ones((n, 8), dtype=np.float32)  # the embedding of a template's last token
    a, b = (x[SITES[2]][:, :2].T - 3) / 5
    statistics = rng.normal(size=(n, 11))
    ease = statistics[:, 0] if next_token else 3 * np.sign(a * b) + a
    labels = rng.binomial(8, 1 / (1 + np.exp(-2 * ease))) / 8
    return Examples(Inputs(activations=x, next_token=statistics), labels[:, None])


def without_next_token(problems: Examples) -> Examples:
    return replace(problems, inputs=replace(problems.inputs, next_token=None))


def test_learns_what_is_not_linear() -> None:
    train, validation, test = (without_next_token(problems(n, n)) for n in (600, 300, 301))
    [fit] = Mlp.fit(train, validation, "classification")
    [linear] = LinearEoi.fit(train, validation, "classification")
    assert fit.probe.site == SITES[2]
    assert not fit.probe.next_token
    outputs = [one.probe.raw(test.inputs) for one in (fit, linear)]
    mlp, alone = (auroc(one, test.labels[:, 0]) for one in outputs)
    assert mlp > 0.9
    assert alone < 0.75


def test_next_token_statistics_are_read_where_there_are() -> None:
    train, validation, test = (problems(n, n, next_token=True) for n in (300, 200, 201))
    [fit] = Mlp.fit(train, validation)
    assert fit.probe.next_token
    assert fit.probe.parameters() == {"next_token": True}
    assert auroc(fit.probe.raw(test.inputs), test.labels[:, 0]) > 0.8
    with pytest.raises(ProbeError, match="next-token statistics"):
        fit.probe.raw(without_next_token(test).inputs)
    [blind] = Mlp.fit(without_next_token(train), without_next_token(validation))
    assert auroc(blind.probe.raw(test.inputs), test.labels[:, 0]) < 0.62


def test_layers_are_read_together_where_each_knows_a_part() -> None:
    train, validation, test = (without_next_token(problems(n, n)) for n in (600, 300, 301))
    for one in (train, validation, test):
        layers = one.inputs.activations
        layers[SITES[1]][:, 1] = layers[SITES[2]][:, 1]  # of the two directions that decide, each layer has one
        layers[SITES[2]][:, 1] = 0.0
    [fit] = Mlp.fit(train, validation, "classification")
    assert fit.probe.sites == tuple(SITES[1:])
    assert auroc(fit.probe.raw(test.inputs), test.labels[:, 0]) > 0.85


def test_a_site_that_never_varies_is_not_read() -> None:
    constant, *_ = SITES
    many = [Site(layer=layer, position=-1) for layer in range(3, 12)]
    train, validation = (problems(n, n, next_token=True) for n in (300, 200))
    for one in (train, validation):
        more = {site: np.random.default_rng(0).normal(size=(len(one.labels), 8)) for site in many}
        one.inputs.activations.update({site: values.astype(np.float32) for site, values in more.items()})  # type: ignore[attr-defined]  # a dict
    [fit] = Mlp.fit(train, validation)
    assert constant not in fit.probe.sites


def test_output_is_that_of_a_torch_network() -> None:
    train, validation = (problems(n, n) for n in (200, 100))
    [fit] = Mlp.fit(train, validation)
    own = {name: torch.tensor(tensor, dtype=torch.float64) for name, tensor in fit.probe.tensors().items()}
    layers = [validation.inputs.activations[site] for site in fit.probe.sites]
    read = np.concatenate([*layers, validation.inputs.next_token], axis=1)  # type: ignore[list-item]  # it is there
    x = (torch.tensor(read) - own["mean"]) / own["deviation"]
    hidden = torch.relu(x @ own["hidden_weight"] + own["hidden_bias"])
    expected = hidden @ own["output_weight"] + own["output_bias"]
    np.testing.assert_allclose(fit.probe.raw(validation.inputs), expected, atol=1e-5)
