"""What a probe is, what it reads, and how it is found. Imports no torch: a test holds it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from probes.card import ProbeCard, Site, Task

FloatArray = NDArray[np.float64]
Activations = NDArray[np.float32]
Rows = slice | NDArray[np.bool_] | NDArray[np.int64]


Reads = Literal["text", "length", "site", "sequence"]
"""What a kind of probe needs: the conversation's text, the prompt's length in tokens, activations at one (layer,
position), or activations of all prompt tokens at one layer."""


class ProbeError(Exception):
    """A probe cannot be loaded, does not fit, or cannot be trained; the message names the fix."""


@dataclass(frozen=True)
class Sequences:
    """Activations of all prompt tokens at one layer, prompts of different lengths one after the other."""

    values: Activations
    """(tokens, d_model); may be a memory map."""
    starts: NDArray[np.int64]
    """Row of each prompt's first token, (n,)."""
    lengths: NDArray[np.int64]
    """(n,)"""

    def rows(self, rows: Rows) -> "Sequences":
        return replace(self, starts=self.starts[rows], lengths=self.lengths[rows])


@dataclass(frozen=True)
class Inputs:
    """What can be read of n prompts; every probe takes what it needs."""

    texts: Sequence[str] = ()
    """The conversations' text, n of them; for probes that read text alone."""
    prompt_tokens: NDArray[np.int64] | None = None
    """How many tokens the probe model reads, (n,)."""
    activations: Mapping[Site, Activations] = field(default_factory=dict)
    """By site, (n, d_model) each; arrays may be views of one memory map."""
    next_token: FloatArray | None = None
    """Next-token statistics, (n, 11): the five largest probabilities, their logarithms, the entropy in nats."""
    sequences: Mapping[int, Sequences] = field(default_factory=dict)
    """By layer."""
    pooled: Mapping["Probe", FloatArray] = field(default_factory=dict)
    """Outputs of probes that were pooled where the activations are, instead of `sequences`: (n,) each."""

    def rows(self, rows: Rows) -> "Inputs":
        """The same of some prompts. No activations are copied where the rows lie side by side."""
        rows = _slice(rows)
        return Inputs(
            texts=self.texts[rows]
            if isinstance(rows, slice)
            else [self.texts[i] for i in _indices(rows) if self.texts],
            prompt_tokens=None if self.prompt_tokens is None else self.prompt_tokens[rows],
            activations={site: values[rows] for site, values in self.activations.items()},
            next_token=None if self.next_token is None else self.next_token[rows],
            sequences={layer: sequences.rows(rows) for layer, sequences in self.sequences.items()},
            pooled={probe: outputs[rows] for probe, outputs in self.pooled.items()},
        )


@dataclass(frozen=True)
class Examples:
    """Problems to fit or to choose on."""

    inputs: Inputs
    labels: FloatArray
    """(n, arms): success rates; to classification, shares of correct samples or 0 and 1."""

    def rows(self, rows: Rows) -> "Examples":
        return Examples(self.inputs.rows(rows), self.labels[rows])


@dataclass(frozen=True)
class Fit:
    """One arm's probe: fitted on train, its site and strength of shrinkage chosen on validation."""

    probe: "Probe"
    score: float
    """Spearman (regression) or AUROC (classification) on the validation split."""
    held_out: FloatArray
    """Raw outputs for the validation problems, (n,), each from a fit whose choice did not see that problem: what
    calibration may be fitted on (see `probes.selection`)."""
    alpha: float | None = None
    """Strength of shrinkage, where there is one."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the card's `training`."""


class Probe(ABC):
    """Maps what is read of a prompt to one arm's success probability, by way of an uncalibrated output."""

    kind: ClassVar[str]
    reads: ClassVar[Reads] = "site"
    site: Site | None = None
    """Where it reads activations, its position None where it reads all prompt tokens; None: it reads no activations."""
    next_token: bool = False
    """Whether it reads next-token statistics too, which needs the probe model's full depth and its LM head."""

    @property
    def sites(self) -> tuple[Site, ...]:
        """All that it reads activations at."""
        return () if self.site is None else (self.site,)

    @classmethod
    @abstractmethod
    def fit(
        cls,
        train: Examples,
        validation: Examples,
        task: Task = "regression",
        *,
        seed: int = 0,
        on_step: Callable[[float], None] = lambda share: None,
    ) -> list[Fit]:
        """One probe per column of the labels. Candidates are the sites that the inputs hold, in their order.

        Args:
            seed: equal seeds give equal probes.
            on_step: called with the share of the work done since the last call, for progress bars.

        Raises:
            ProbeError: the inputs lack what this kind reads, or nothing can be learnt from the labels.
        """

    @abstractmethod
    def raw(self, inputs: Inputs) -> FloatArray:
        """Uncalibrated outputs, (n,)."""

    @classmethod
    def raw_all(cls, probes: Sequence[Self], inputs: Inputs) -> FloatArray:
        """Uncalibrated outputs of several probes of one kind and site: (n, probes)."""
        return np.stack([probe.raw(inputs) for probe in probes], axis=1)

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """What `probe.safetensors` holds of it. Names have no dot: dotted ones belong to what travels beside it."""

    def parameters(self) -> dict[str, bool | int | float | str | list[int]]:
        """What the card says of it as `parameters`."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Further files of the artifact by name."""
        return {}

    @classmethod
    @abstractmethod
    def from_artifact(
        cls, card: ProbeCard, tensors: Mapping[str, NDArray[np.float32]], files: Mapping[str, bytes]
    ) -> Self:
        """The inverse of `tensors`, `parameters` and `files`.

        Raises:
            ProbeError: a tensor or file is missing, of the wrong form, or too many.
        """


def load(kind: str) -> type[Probe]:
    """The probe class of `probes/<kind>.py`; the research project's names, which end in `_probe`, mean the same.

    Raises:
        ProbeError: no such probe.
    """
    name = kind.removesuffix("_probe")
    if name not in KINDS:
        raise ProbeError(f"unknown probe {kind!r}: choose one of {', '.join(KINDS)}")
    module = import_module(f"probes.{name}")
    probe: type[Probe] = getattr(module, "".join(part.capitalize() for part in name.split("_")))
    return probe


KINDS = (
    "linear_eoi",
    "mlp",
    "attn",
    "linear_then_max",
    "linear_then_softmax",
    "linear_then_rolling_max",
    "tfidf",
    "length",
)


def _slice(rows: Rows) -> Rows:
    """The same rows, as a slice where they lie side by side: of an array that is no copy but a view."""
    if isinstance(rows, slice):
        return rows
    indices = _indices(rows)
    if len(indices) and indices[0] >= 0 and (np.diff(indices) == 1).all():
        return slice(int(indices[0]), int(indices[-1]) + 1)
    return rows


def _indices(rows: NDArray[np.bool_] | NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64)
