"""What the probes share that read all prompt tokens: a linear readout of each token, and a rule that makes one of many.

As pooling comes after the readout, one number per token (`attn`: two) is all that is kept of a prompt.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probes.adam import Adam, batches
from probes.base import Examples, Fit, FloatArray, Inputs, Probe, ProbeError, Reads, Sequences
from probes.card import ProbeCard, Site, Task
from probes.logistic import sigmoid
from probes.parts import check_labels, check_tensors
from probes.selection import LayerRule, choose

BATCH, EPOCHS, LEAST_STEPS = 32, 20, 300
RATE, DECAY = 1e-2, 0.1
STOPS = (0.25, 0.5, 1.0)
"""Where on its way training leaves a candidate: validation chooses among them, which is early stopping."""

Array = NDArray[np.float32]
Floats = NDArray[np.floating[Any]]


class TokenReadout(Probe):
    """raw = pool(x_t . weight + bias, ... over tokens t).

    Regression: the squared error of raw is least, so raw is the rate; classification: its cross-entropy as a logit.
    """

    reads: ClassVar[Reads] = "sequence"
    site: Site
    readouts: ClassVar[tuple[str, ...]] = ("weight",)
    """The tensors, (d_model,) each, that every token is read with. The first one's readout gets the bias."""

    def __init__(self, weights: Sequence[Array], bias: Array, site: Site) -> None:
        self._weights = list(weights)  # in the order of the readouts, (d_model,) each
        self._bias = bias  # (1,)
        self.site = site

    @classmethod
    @abstractmethod
    def pool(cls, tokens: Floats) -> tuple[Floats, Floats]:
        """One prompt's readouts to its outputs, for several probes at once, and the outputs' derivatives.

        (T, probes, readouts) -> (probes,), (T, probes, readouts)
        """

    @classmethod
    def scale(cls, d_model: int) -> tuple[float, ...]:
        """What each readout is multiplied by."""
        return (1.0,) * len(cls.readouts)

    @property
    def weights(self) -> FloatArray:
        """Scaled, (d_model, readouts)."""
        return np.stack(self._weights, axis=1).astype(np.float64) * self.scale(len(self._weights[0]))

    @property
    def bias(self) -> float:
        return float(self._bias[0])

    def raw(self, inputs: Inputs) -> FloatArray:
        if self in inputs.pooled:
            return inputs.pooled[self]
        outputs = _outputs(self.pool, _sequences(inputs, self.site.layer), self.weights[:, None], self._bias[0])
        return outputs[:, 0]

    def tensors(self) -> dict[str, Array]:
        return {**dict(zip(self.readouts, self._weights, strict=True)), "bias": self._bias}

    @classmethod
    def from_artifact(cls, card: ProbeCard, tensors: Mapping[str, Array], files: Mapping[str, bytes]) -> Self:
        if card.site is None or card.site.position is not None or card.d_model is None:
            raise ProbeError(f"a probe of kind {cls.kind} needs d_model and a site whose position is null: all tokens")
        check_tensors(cls.kind, tensors, dict.fromkeys(cls.readouts, (card.d_model,)) | {"bias": (1,)})
        return cls([tensors[name] for name in cls.readouts], tensors["bias"], card.site)

    @classmethod
    def fit(
        cls,
        train: Examples,
        validation: Examples,
        task: Task = "regression",
        *,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
        layer_rule: LayerRule = "best",
    ) -> list[Fit]:
        """See `Probe.fit`. Layer and early stopping are chosen on validation by `choose`, and held out by it."""
        check_labels(train.labels, validation.labels)
        layers = list(train.inputs.sequences)
        if not layers:
            raise ProbeError(f"{cls.kind} reads the activations of all prompt tokens, which these inputs lack")
        found, raw = [], []
        for layer in layers:
            sequences = _sequences(validation.inputs, layer)
            for weights, bias in cls._train(train.inputs.sequences[layer], train.labels, task, seed):
                found.append((layer, weights, bias))
                raw.append(_outputs(cls.pool, sequences, weights * cls.scale(len(weights)), bias))
                on_step(1 / len(layers) / len(STOPS))
        fits = []
        for arm, labels in enumerate(validation.labels.T):
            outputs = [one[:, arm] for one in raw]
            depths = [layer for layer, _, _ in found]
            choice = choose(outputs, labels, task, seed, layers=depths, layer_rule=layer_rule)
            layer, weights, bias = found[choice.best]
            own = [weight.astype(np.float32) for weight in weights[:, arm].T]
            probe = cls(own, bias[arm : arm + 1].astype(np.float32), Site(layer=layer, position=None))
            facts = {"epochs_share": STOPS[choice.best % len(STOPS)]}
            fits.append(Fit(probe, choice.score, choice.held_out, facts=facts))
        return fits

    @classmethod
    def _train(
        cls, sequences: Sequences, y: FloatArray, task: Task, seed: int
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Weights (d_model, arms, readouts), before scaling, and biases (arms,), at each of the stops."""
        rng = np.random.default_rng(seed)
        n, arms = y.shape
        mean, deviation = _standardisation(sequences)
        d, readouts = len(mean), len(cls.readouts)
        # Readouts differ at the start, or none would be the largest; every arm starts alike, whatever stands beside it.
        start = rng.standard_normal((d, 1, readouts)) * 0.1 / np.sqrt(d)
        w = np.broadcast_to(start, (d, arms, readouts)).astype(np.float32).reshape(d, -1)
        b = (y.mean(axis=0) if task == "regression" else np.zeros(arms)).astype(np.float32)
        steps = max(LEAST_STEPS, EPOCHS * n // BATCH)
        adam = Adam([w, b], steps, RATE, [DECAY, 0.0])
        stops = {int(share * steps) for share in STOPS}
        for step, rows in enumerate(batches(n, BATCH, steps, rng), start=1):
            x, ends = _tokens(sequences.rows(rows))  # (tokens, d_model)
            x -= mean
            x /= deviation
            read = (x @ w).reshape(len(x), arms, readouts)
            read[:, :, 0] += b
            slope = np.empty_like(read)
            for label, begin, end in zip(y[rows], (0, *ends), ends, strict=False):
                output, derivative = cls.pool(read[begin:end])
                # Squared error of an output and cross-entropy of a logit have the same gradient: prediction - label.
                residual = (output if task == "regression" else sigmoid(output.astype(np.float64))) - label
                slope[begin:end] = derivative * (residual / len(rows))[:, None]
            adam.step([x.T @ slope.reshape(len(x), -1), slope[:, :, 0].sum(axis=0)])
            if step in stops:
                weights = w.reshape(d, arms, readouts) / deviation.astype(np.float64)[:, None, None]
                yield weights / cls.scale(d), b - mean.astype(np.float64) @ weights[:, :, 0]


def _sequences(inputs: Inputs, layer: int) -> Sequences:
    if layer not in inputs.sequences:
        raise ProbeError(f"this probe reads all prompt tokens at layer {layer}, which the inputs lack")
    return inputs.sequences[layer]


def _outputs(
    pool: Callable[[Floats], tuple[Floats, Floats]],
    sequences: Sequences,
    weights: FloatArray,
    bias: FloatArray,
) -> FloatArray:
    """Outputs of n prompts, one after the other: (d_model, probes, readouts), (probes,) -> (n, probes).

    Each prompt has a product of its own, so nothing depends on its neighbours, and one prompt is all that is read.
    """
    d, probes, readouts = weights.shape
    flat = weights.reshape(d, -1)
    outputs = np.empty((len(sequences.starts), probes))
    for i, (start, length) in enumerate(zip(sequences.starts, sequences.lengths, strict=True)):
        x = sequences.values[start : start + length].astype(np.float64)  # (T, d_model)
        read = (x @ flat).reshape(length, probes, readouts)
        read[:, :, 0] += bias
        outputs[i] = pool(read)[0]
    return outputs


def _tokens(sequences: Sequences) -> tuple[Array, NDArray[np.int64]]:
    """Some prompts' tokens one after the other, and where each prompt ends."""
    pairs = zip(sequences.starts, sequences.lengths, strict=True)
    x = np.concatenate([sequences.values[start : start + length] for start, length in pairs])
    return x, np.cumsum(sequences.lengths)


def _standardisation(sequences: Sequences) -> tuple[Array, Array]:
    """Mean and deviation over all tokens, (d_model,) each; dimensions that do not vary have deviation 1."""
    count, total, squares = 0, np.zeros(()), np.zeros(())
    for at in range(0, len(sequences.starts), BATCH):
        x = _tokens(sequences.rows(slice(at, at + BATCH)))[0].astype(np.float64)
        count, total, squares = count + len(x), total + x.sum(axis=0), squares + (x * x).sum(axis=0)
    mean = total / count
    deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    deviation[deviation <= 1e-6 * np.abs(mean) + 1e-12] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)
