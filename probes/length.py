"""`length`: the prompt's tokens alone, on a straight line. What a probe has to beat, and a probe like any other."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from probes.base import Examples, Fit, FloatArray, Inputs, Probe, ProbeError, Reads
from probes.card import ProbeCard, Task
from probes.logistic import fit_logistic
from probes.parts import check_labels, check_tensors
from probes.selection import choose

RIDGE = 1e-6
"""Per problem: keeps the logistic slope finite where length tells right from wrong without fault."""


class Length(Probe):
    """raw = weight * prompt tokens + bias: the rate (regression) or a logit (classification)."""

    kind: ClassVar[str] = "length"
    reads: ClassVar[Reads] = "length"

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        self._weight, self._bias = weight, bias  # (1,) each

    def raw(self, inputs: Inputs) -> FloatArray:
        return _tokens(inputs) * float(self._weight[0]) + float(self._bias[0])

    def tensors(self) -> dict[str, NDArray[np.float32]]:
        return {"weight": self._weight, "bias": self._bias}

    @classmethod
    def from_artifact(
        cls, card: ProbeCard, tensors: Mapping[str, NDArray[np.float32]], files: Mapping[str, bytes]
    ) -> Self:
        if card.pass_ is None or card.site is not None:
            raise ProbeError("a length probe needs a pass, whose tokenizer counts, and no site")
        check_tensors(cls.kind, tensors, {"weight": (1,), "bias": (1,)})
        return cls(tensors["weight"], tensors["bias"])

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
        """See `Probe.fit`. There is one candidate, so validation chooses nothing."""
        check_labels(train.labels, validation.labels)
        tokens = _tokens(train.inputs)
        mean, deviation = tokens.mean(), tokens.std() or 1.0
        design = np.stack([(tokens - mean) / deviation, np.ones(len(tokens))], axis=1)  # (n, 2)
        fits = []
        for labels, held_out in zip(train.labels.T, validation.labels.T, strict=True):
            if task == "regression":
                slope, level = np.linalg.lstsq(design, labels, rcond=None)[0]
            else:
                slope, level = fit_logistic(design, labels, RIDGE * len(labels), start=np.zeros(2))
            weight, bias = np.array([[slope / deviation], [level - slope * mean / deviation]], dtype=np.float32)
            probe = cls(weight, bias)
            choice = choose(probe.raw(validation.inputs)[None], held_out, task, seed)
            fits.append(Fit(probe, choice.score, choice.held_out))
            on_step(1 / train.labels.shape[1])
        return fits


def _tokens(inputs: Inputs) -> FloatArray:
    if inputs.prompt_tokens is None:
        raise ProbeError("a length probe reads the prompts' lengths in tokens, which these inputs lack")
    return inputs.prompt_tokens.astype(np.float64)
