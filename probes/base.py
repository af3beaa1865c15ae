"""What a probe is, and the card that travels with it. Imports no torch: a test holds it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

FloatArray = NDArray[np.float64]
Activations = NDArray[np.float32]


Label = Literal["success_rate", "majority_vote_is_correct", "sample_is_correct"]
"""What a probe is fitted to: the share of correct samples (regression), or whether the majority vote, or each single
sample, is correct (classification)."""


class ProbeError(Exception):
    """A probe cannot be loaded, does not fit, or cannot be trained; the message names the fix."""


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=())


class Recipe(Frozen):
    """How a conversation becomes the probe model's prompt."""

    chat_template_sha256: str
    """SHA-256 of the chat template's text, so that a changed template is noticed."""
    suffix: str = ""
    """Added to the last user message of the probe's prompt alone, never sent upstream."""
    max_tokens: int = Field(default=1024, ge=8)
    """Longer prompts are cut; the end-of-instruction tokens always stay."""
    template_kwargs: dict[str, str | bool | int] = {}
    """Passed to the template, such as `reasoning_effort`."""


class Pass(Frozen):
    """One forward pass per prompt: probes whose pass is equal share it."""

    probe_model: str
    """Hub id, or a path: relative ones are resolved against the artifact's folder."""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    recipe: Recipe


class Site(Frozen):
    """Where an activation is read."""

    layer: int = Field(ge=0)
    """Hugging Face index: 0 = embeddings, i = output of block i; the last one stands after the final norm."""
    position: int = Field(lt=0)
    """Counted from the prompt's end: -1 = last token."""


class Target(Frozen):
    """The arm whose success the probe predicts, as its labels were sampled."""

    arm: str
    model: str
    request: dict[str, Any] = {}
    temperature: float
    max_tokens: int
    k: int = Field(ge=1)
    """Rollouts per problem behind each label."""


class MeanTokens(Frozen):
    """Mean tokens of one answer over the training problems."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Estimate(Frozen):
    """A measured figure with its 95% bootstrap confidence interval."""

    value: float
    low: float
    high: float


class Metrics(Frozen):
    """How a probe did on one split it was not fitted on."""

    split: str
    n: int
    auroc: Estimate
    """How well it ranks single samples: correct against wrong ones."""
    spearman: Estimate
    ece: Estimate
    brier: Estimate


class Calibration(Frozen):
    """p = sigmoid(scale * raw + bias) for `platt`; `none` clips raw to [0, 1]."""

    method: Literal["none", "platt"] = "platt"
    scale: float = 1.0
    bias: float = 0.0


class ProbeCard(Frozen):
    """`config.json` of a probe artifact: everything that is known of one probe but its weights."""

    schema_version: Literal[1] = 1
    kind: str
    """The probe's file name in `probes/`."""
    # `pass` is a Python keyword, hence the aliases.
    pass_: Pass = Field(validation_alias=AliasChoices("pass", "pass_"), serialization_alias="pass")
    site: Site
    d_model: int = Field(gt=0)
    canary_prompt: str
    canary_token_ids: list[int]
    """What the tokenizer made of the canary prompt at training; compared at load."""
    target: Target
    label: Label = "success_rate"
    benchmark: str
    calibration: Calibration
    metrics: list[Metrics] = Field(min_length=1)
    baselines: dict[str, Metrics]
    """The length and TF-IDF probes on the split of the last entry of `metrics`."""
    mean_tokens: MeanTokens
    training: dict[str, Any]
    """Seeds, sample sizes, alpha, hashes of the inputs."""
    versions: dict[str, str]
    """Library versions at training."""

    # Keys of the research project's folders, kept so that its tools can read ours.
    probe_name: str
    model_name: str
    dataset: str
    probe_type: str
    label_type: str
    k: int
    temperature: float
    max_len: int
    best_layer_idx: int
    best_position_value: int
    best_alpha: float
    task_type: Literal["regression", "classification"]
    test_score: float
    best_val_score: float
    files: list[str]
    exported_at: str

    @property
    def beats_length(self) -> bool:
        """Whether the probe surely ranks better than the prompt's length alone does."""
        length = self.baselines.get("length")
        return length is None or self.metrics[-1].auroc.low > length.auroc.value


@dataclass(frozen=True)
class FitResult:
    """What a fit chose on the validation split."""

    site: Site
    alpha: float
    score: float
    """Spearman (regression) or AUROC (classification) on the validation split."""


class Probe(ABC):
    """Maps the activation at one site to one arm's success probability."""

    kind: ClassVar[str]

    @abstractmethod
    def raw(self, activations: Activations) -> FloatArray:
        """Uncalibrated outputs: (n, d_model) -> (n,)."""

    @classmethod
    def raw_all(cls, probes: Sequence[Self], activations: Activations) -> FloatArray:
        """Uncalibrated outputs of several probes of one site: (n, d_model) -> (n, probes)."""
        return np.stack([probe.raw(activations) for probe in probes], axis=1)

    @abstractmethod
    def tensors(self) -> dict[str, NDArray[np.float32]]:
        """What `probe.safetensors` holds."""

    @classmethod
    @abstractmethod
    def from_tensors(cls, tensors: dict[str, NDArray[np.float32]], card: ProbeCard) -> Self:
        """The inverse of `tensors`.

        Raises:
            ProbeError: a tensor is missing, of the wrong shape, or not finite.
        """


def load(kind: str) -> type[Probe]:
    """The probe class of `probes/<kind>.py`.

    Raises:
        ProbeError: no such probe.
    """
    if kind not in KINDS:
        raise ProbeError(f"unknown probe {kind!r}: choose one of {', '.join(KINDS)}")
    module = import_module(f"probes.{kind}")
    probe: type[Probe] = getattr(module, "".join(part.capitalize() for part in kind.split("_")))
    return probe


KINDS = ("linear_eoi",)
