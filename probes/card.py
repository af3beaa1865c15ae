"""The card that travels with a probe: all that is known of it but its weights. Imports no torch: a test holds it."""

from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, model_validator

Task = Literal["regression", "classification"]
Label = Literal["success_rate", "majority_vote_is_correct", "sample_is_correct"]
"""What a probe is fitted to: the share of correct samples (regression), or whether the majority vote, or each single
sample, is correct (classification)."""

Dtype = Literal["float32", "bfloat16", "float16"]
Check = Literal["probe-model", "revision", "dtype", "chat-template", "tokenizer"]
"""What may differ between training and serving, where the operator allows it by this name."""


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("has characters that cannot be printed")
    return text


def _openable(path: str) -> str:
    if any(len(part.encode()) > 255 for part in path.split("/")):
        raise ValueError("has a part of more than 255 bytes, which no folder can be named")
    return path


# A card comes from anywhere, and what it says goes into headers, metrics and terminals.
Name = Annotated[str, Field(max_length=200), AfterValidator(_printable)]
Reference = Annotated[str, Field(max_length=1024), AfterValidator(_printable), AfterValidator(_openable)]
Text = Annotated[str, Field(max_length=65536)]
Number = Annotated[int, Field(ge=-(2**53), le=2**53)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Layer = Annotated[int, Field(ge=0, le=4096)]
Position = Annotated[int, Field(ge=-8192, lt=0)]


class Frozen(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, protected_namespaces=(), allow_inf_nan=False
    )


class Recipe(Frozen):
    """How a conversation becomes the probe model's prompt."""

    chat_template_sha256: Name | None
    """SHA-256 of the chat template's text, so that a changed template is noticed; None where it was not recorded."""
    suffix: Text = ""
    """Added to the last user message of the probe's prompt alone, never sent upstream."""
    max_tokens: int = Field(default=1024, ge=8, le=2**31)
    """Longer prompts are cut, as are those longer than the probe model has positions; the end-of-instruction tokens
    always stay."""
    template_kwargs: dict[Name, Text | bool | int] = {}
    """Passed to the template, such as `reasoning_effort`."""


class Pass(Frozen):
    """One forward pass per prompt: probes whose pass is equal share it."""

    probe_model: Reference
    """Hub id, or a path: relative ones are resolved against the artifact's folder."""
    revision: Name | None = None
    dtype: Dtype = "float32"
    recipe: Recipe


class Site(Frozen):
    """Where activations are read."""

    layer: Layer
    """Hugging Face index: 0 = embeddings, i = output of block i; the last one stands after the final norm."""
    position: Position | None
    """Counted from the prompt's end: -1 = last token. None: all prompt tokens."""


class Target(Frozen):
    """The arm whose success the probe predicts, as its labels were sampled."""

    arm: Name
    model: Reference
    request: dict[Name, Any] = {}
    temperature: float
    max_tokens: Count
    k: int = Field(ge=1, le=2**53)
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


class BrierParts(Frozen):
    """Brier = reliability - resolution + uncertainty; see `probes.measures.brier_parts`."""

    reliability: Estimate
    resolution: Estimate
    uncertainty: Estimate


class ReliabilityBin(Frozen):
    """A point of the reliability curve: problems of about the same probability, as many as in the other bins."""

    predicted: float
    """Mean probability."""
    observed: Estimate
    """Mean success rate."""
    weight: float
    """Share of the problems."""


class Metrics(Frozen):
    """How a probe did on problems it was not fitted on."""

    split: Name
    n: Count
    auroc: Estimate
    """How well it ranks single samples: correct against wrong ones."""
    spearman: Estimate
    ece: Estimate
    """Over 15 bins of equal mass, debiased."""
    brier: Estimate
    brier_parts: BrierParts | None = None
    reliability: list[ReliabilityBin] = []
    """Empty where it was not recorded, as `brier_parts` is None."""


class Calibration(Frozen):
    """From raw outputs to probabilities.

    `platt`: sigmoid(scale * raw + bias); `temperature`: the same with bias 0; `isotonic`: linear between the knots,
    level beyond them; `none`: raw clipped to [0, 1].
    """

    method: Literal["none", "platt", "temperature", "isotonic"] = "platt"
    scale: float = 1.0
    bias: float = 0.0
    knots: list[tuple[float, Annotated[float, Field(ge=0, le=1)]]] = []
    """(raw, probability): raw rises, probability never falls."""
    of: Literal["success", "majority_vote"] | None = "success"
    """What the probabilities are of: one sampled answer's being correct, the majority vote's, or nothing known."""

    @model_validator(mode="after")
    def _rise(self) -> Self:
        if self.method == "isotonic" and not self.knots:
            raise ValueError("isotonic calibration needs knots")
        for (raw, p), (next_raw, next_p) in pairwise(self.knots):
            if not (raw < next_raw and p <= next_p):
                raise ValueError(f"knots must rise: [{next_raw:g}, {next_p:g}] follows [{raw:g}, {p:g}]")
        return self


class OutputTokens(Frozen):
    """The output-token head: expected output tokens = smearing * exp(weight . activation + bias), kept in [low, high].

    Its weight is the tensor `output_tokens.weight`.
    """

    site: Site
    bias: float
    smearing: float = Field(gt=0)
    """Mean of actual over exponentiated tokens: undoes that a mean of logs is not the log of a mean."""
    low: float = Field(ge=0)
    high: float = Field(ge=0)
    log_rmse: float
    """Root mean squared error in log space on the test split."""
    log_rmse_of_mean: float
    """The same for always predicting the mean: what the head is to beat."""


class Statistics(Frozen):
    """What training prompts' activations look like at one site.

    Tensors: `statistics.mean` (d_model,), `statistics.components` (rank, d_model), `statistics.variances` (rank,).
    """

    site: Site
    n: Count
    """Training prompts."""
    residual_variance: float = Field(gt=0)
    """Along every direction outside the components."""
    quantiles: list[tuple[Annotated[float, Field(ge=0, le=100)], Annotated[float, Field(ge=0)]]] = Field(min_length=2)
    """(percentile, Mahalanobis distance) of prompts that the statistics were not fitted on, both ascending."""


class ProbeCard(Frozen):
    """`config.json` of a probe artifact."""

    schema_version: Literal[1] = 1
    kind: Name
    """The probe's file name in `probes/`."""
    # `pass` is a Python keyword, hence the aliases.
    pass_: Pass | None = Field(validation_alias=AliasChoices("pass", "pass_"), serialization_alias="pass")
    """None: the probe reads text alone."""
    site: Site | None
    """None: no activation is read."""
    d_model: int | None = Field(gt=0, le=2**20)
    parameters: dict[Name, bool | Number | float | Name | list[Number]] = {}
    """What the kind needs to know beside its tensors."""
    probe_model_fingerprint: Name | None = None
    """Of the probe model's configuration and weights; compared at load."""
    canary_prompt: Text | None
    canary_token_ids: list[Count] | None
    """What the tokenizer made of the canary prompt at training; compared at load. None where it was not recorded."""
    target: Target
    label: Label = "success_rate"
    benchmark: Reference
    calibration: Calibration
    metrics: list[Metrics]
    """Empty where none were recorded."""
    baselines: dict[Name, Metrics]
    """The length and TF-IDF probes on the split of the last entry of `metrics`."""
    mean_tokens: MeanTokens | None
    output_tokens: OutputTokens | None = None
    statistics: Statistics | None = None
    training: dict[str, Any]
    """Seeds, sample sizes, hashes of the inputs."""
    versions: dict[Name, Name]
    """Library versions at training."""

    # Keys of the research project's folders, kept so that its tools can read ours.
    probe_name: Name
    model_name: Reference
    dataset: Reference
    probe_type: Name
    label_type: Name
    k: Count
    temperature: float
    max_len: Count
    best_layer_idx: Layer | None
    best_position_value: Position | None
    best_alpha: float | None
    task_type: Task
    test_score: float | None
    best_val_score: float | None
    files: list[Name] = Field(max_length=8)
    exported_at: Name

    @model_validator(mode="after")
    def _writable(self) -> Self:
        """Also in its free parts: nothing that JSON has no text for, or that is nested too deeply."""
        self.model_dump_json()
        return self

    @property
    def beats_length(self) -> bool:
        """Whether the probe surely ranks better than the prompt's length alone does; True where nobody measured."""
        length = self.baselines.get("length")
        return length is None or not self.metrics or self.metrics[-1].auroc.low > length.auroc.value
