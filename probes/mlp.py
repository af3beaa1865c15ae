"""`mlp`: a network with one hidden layer on the activations of one or several layers at one position, and on next-token
statistics where there are.

Four networks that differ in their random start are trained side by side and averaged; an average of networks is one
wider network, so that is what the artifact holds. NumPy alone, in training too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probes.adam import Adam, batches
from probes.base import Examples, Fit, FloatArray, Inputs, Probe, ProbeError
from probes.card import ProbeCard, Site, Task
from probes.logistic import sigmoid
from probes.measures import auroc
from probes.parts import check_labels, check_tensors, standardisation
from probes.selection import choose

NEXT_TOKEN = 11
"""How many next-token statistics there are."""
MEMBERS, HIDDEN = 4, 128
BATCH, EPOCHS, LEAST_STEPS = 128, 60, 1000
RATE, DECAY = 1e-3, 2.0
STOPS = (0.25, 0.5, 1.0)
"""Where on its way training leaves a candidate: validation chooses among them, which is early stopping."""
SITES, TOGETHER = 3, 6
"""Networks are trained at this many of the sites, those that a linear probe finds best within the training split, and
on this many layers at once, the best at the best site's position."""
RIDGE = 0.03
"""Of the linear probe that ranks sites: alpha per problem."""

Array = NDArray[np.float32]


class Mlp(Probe):
    """raw = output_weight . relu((x - mean) / deviation @ hidden_weight + hidden_bias) + output_bias.

    x = the layers' activations side by side, then the next-token statistics. Regression: the squared error of raw is
    least, so raw is the rate; classification: its cross-entropy as a logit.
    """

    kind: ClassVar[str] = "mlp"
    site: Site
    """The deepest that it reads."""

    def __init__(self, tensors: Mapping[str, Array], sites: Sequence[Site], next_token: bool) -> None:
        self._tensors = dict(tensors)
        # In double precision an output does not depend on which other prompts share the product.
        self._double = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
        self._sites = tuple(sites)
        self.site = self._sites[-1]
        self.next_token = next_token

    @property
    def sites(self) -> tuple[Site, ...]:
        """Of one position, the deepest last."""
        return self._sites

    def raw(self, inputs: Inputs) -> FloatArray:
        own = self._double
        x = (_read(inputs, self.sites, self.next_token).astype(np.float64) - own["mean"]) / own["deviation"]
        hidden = np.maximum(x @ own["hidden_weight"] + own["hidden_bias"], 0.0)  # (n, hidden)
        output: FloatArray = hidden @ own["output_weight"] + own["output_bias"]
        return output

    def tensors(self) -> dict[str, Array]:
        return self._tensors

    def parameters(self) -> dict[str, bool | int | float | str | list[int]]:
        several = {"layers": [site.layer for site in self.sites]} if len(self.sites) > 1 else {}
        return {"next_token": self.next_token, **several}

    @classmethod
    def from_artifact(cls, card: ProbeCard, tensors: Mapping[str, Array], files: Mapping[str, bytes]) -> Self:
        if card.site is None or card.site.position is None or card.d_model is None:
            raise ProbeError("an mlp probe needs d_model and a site with layer and position")
        next_token = card.parameters.get("next_token", False)
        if not isinstance(next_token, bool):
            raise ProbeError(f"an mlp probe's parameter next_token is true or false, not {next_token!r}")
        layers = card.parameters.get("layers", [card.site.layer])
        if not isinstance(layers, list) or sorted(set(layers)) != layers or layers[-1:] != [card.site.layer]:
            raise ProbeError(f"an mlp probe's layers ascend to that of its site, {card.site.layer}; not {layers!r}")
        sites = [Site(layer=layer, position=card.site.position) for layer in layers]
        d = card.d_model * len(sites) + NEXT_TOKEN * next_token
        hidden = np.size(tensors.get("hidden_bias", ()))
        shapes = {"mean": (d,), "deviation": (d,), "hidden_weight": (d, hidden), "hidden_bias": (hidden,)}
        check_tensors(cls.kind, tensors, {**shapes, "output_weight": (hidden,), "output_bias": (1,)})
        if (tensors["deviation"] <= 0).any():
            raise ProbeError("an mlp probe's deviations are greater than 0")
        return cls(tensors, sites, next_token)

    @classmethod
    def fit(
        cls,
        train: Examples,
        validation: Examples,
        task: Task = "regression",
        *,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> list[Fit]:
        """See `Probe.fit`. Reads next-token statistics where the inputs have them.

        Sites are ranked within the training split, each arm's on its own; what is read, and early stopping, are then
        chosen on validation, so the outputs held out there are fair to what `choose` chose.
        """
        check_labels(train.labels, validation.labels)
        next_token = train.inputs.next_token is not None
        candidates = [_candidates(ranked) for ranked in _ranked_sites(train, next_token, seed)]
        work = sum(len(sites) for one in candidates for sites in one)
        fits = []
        for arm, one in enumerate(candidates):
            probes, raw = [], []
            for sites in one:
                x = _read(train.inputs, sites, next_token)
                for tensors in _train(x, train.labels[:, arm], task, seed):
                    probes.append(cls(tensors, sites, next_token))
                    raw.append(probes[-1].raw(validation.inputs))
                on_step(len(sites) / work)
            choice = choose(raw, validation.labels[:, arm], task, seed)
            facts = {"epochs_share": STOPS[choice.best % len(STOPS)], "networks": MEMBERS, "hidden": HIDDEN}
            fits.append(Fit(probes[choice.best], choice.score, choice.held_out, facts=facts))
        return fits


def _read(inputs: Inputs, sites: Sequence[Site], next_token: bool) -> Array:
    """(n, sites * d_model), or (n, sites * d_model + 11) with next-token statistics."""
    parts = [inputs.activations[site] for site in sites]
    if next_token and inputs.next_token is None:
        raise ProbeError("this probe reads next-token statistics, which the inputs lack")
    if next_token and inputs.next_token is not None:
        parts.append(inputs.next_token.astype(np.float32))
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)


def _candidates(ranked: Sequence[Site]) -> list[tuple[Site, ...]]:
    """What networks are to read: the best sites one by one, and several layers at the best one's position."""
    together = [site for site in ranked if site.position == ranked[0].position][:TOGETHER]
    alone: list[tuple[Site, ...]] = [(site,) for site in ranked[:SITES]]
    return [*alone, tuple(sorted(together, key=lambda site: site.layer))] if len(together) > 1 else alone


def _ranked_sites(train: Examples, next_token: bool, seed: int) -> list[list[Site]]:
    """Each arm's sites, the best first: how ridge, fitted on one half, ranks the other by AUROC.

    Left out are those that never vary, as the embedding of a template's last token, where others do.
    """
    if not train.inputs.activations:
        raise ProbeError("an mlp probe reads activations, which these inputs lack")
    centred = (train.labels - train.labels.mean(axis=0)).astype(np.float32)
    halves = np.array_split(np.random.default_rng(seed).permutation(len(centred)), 2)
    every = train.inputs.activations
    sites = [site for site, values in every.items() if np.ptp(values, axis=0).any()] or list(every)
    scores = np.zeros((centred.shape[1], len(sites)))
    for i, site in enumerate(sites):
        x = _read(train.inputs, [site], next_token)
        mean, deviation = standardisation(x)
        x = (x - mean) / deviation
        for fitted, other in (halves, halves[::-1]):
            gram = x[fitted].T @ x[fitted]
            gram[np.diag_indices(len(gram))] += RIDGE * len(fitted)
            output = x[other] @ np.linalg.solve(gram, x[fitted].T @ centred[fitted])  # (n / 2, arms)
            scores[:, i] += [auroc(*pair) for pair in zip(output.T, train.labels[other].T, strict=True)]
    return [[sites[i] for i in order] for order in np.argsort(-scores, axis=1, kind="stable")]


def _train(x: Array, y: FloatArray, task: Task, seed: int) -> Iterator[dict[str, Array]]:
    """Tensors at each of the stops: (n, d), (n,)."""
    rng = np.random.default_rng(seed)
    n, d = x.shape
    mean, deviation = standardisation(x)
    x, labels = (x - mean) / deviation, y.astype(np.float32)[:, None]  # (n, d), (n, 1)
    w = (rng.standard_normal((d, MEMBERS * HIDDEN)) * np.sqrt(2 / d)).astype(np.float32)
    b = np.zeros(MEMBERS * HIDDEN, dtype=np.float32)
    v = (rng.standard_normal((MEMBERS, HIDDEN)) * np.sqrt(1 / HIDDEN)).astype(np.float32)
    c = np.full(MEMBERS, labels.mean() if task == "regression" else 0.0, dtype=np.float32)
    steps = max(LEAST_STEPS, EPOCHS * n // BATCH)
    adam = Adam([w, b, v, c], steps, RATE, [DECAY, 0.0, DECAY, 0.0])
    stops = {int(share * steps) for share in STOPS}
    for step, rows in enumerate(batches(n, BATCH, steps, rng), start=1):
        hidden = np.maximum(x[rows] @ w + b, 0).reshape(len(rows), MEMBERS, HIDDEN)
        output = np.einsum("nmh,mh->nm", hidden, v) + c
        # Squared error of an output and cross-entropy of a logit have the same gradient: prediction - label.
        gradient = (output if task == "regression" else sigmoid(output)) - labels[rows]
        gradient /= np.float32(len(rows))  # (batch, members)
        inner = (gradient[:, :, None] * v * (hidden > 0)).reshape(len(rows), -1)
        outer = np.einsum("nm,nmh->mh", gradient, hidden)
        adam.step([x[rows].T @ inner, inner.sum(axis=0), outer, gradient.sum(axis=0)])
        if step in stops:
            yield {
                "mean": mean,
                "deviation": deviation,
                "hidden_weight": w.copy(),
                "hidden_bias": b.copy(),
                "output_weight": v.reshape(-1) / MEMBERS,
                "output_bias": c.mean(keepdims=True),
            }
