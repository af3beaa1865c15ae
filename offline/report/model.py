"""What `pika evaluate` wrote: `evaluation.json`, read and checked.

Fields that this version does not know are left out of the report; another schema version is refused.
"""

import hashlib
import io
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    NonNegativeFloat,
    NonNegativeInt,
    ValidationError,
    model_validator,
)

from offline.evaluate import DataError
from offline.provenance import RECORDED

SCHEMA_VERSION = 1
FILE, RESULTS = "evaluation.json", "results.parquet"

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]+")


def printable(text: str) -> str:
    """Names and sentences come from data: control characters, which neither XML nor TeX can hold, become spaces."""
    return _CONTROL.sub(" ", text)


Text = Annotated[str, AfterValidator(printable)]
Share = Annotated[float, Field(ge=-1e-9, le=1 + 1e-9)]
"""Sums of many parts may miss 0 and 1 by a rounding error."""
Group = Literal["policy", "single", "control", "baseline", "oracle"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Interval(_Part):
    """A figure and its 95% interval."""

    value: float
    low: float
    high: float


class ReliabilityBin(_Part):
    predicted: Share
    observed: Share
    low: Share
    high: Share
    problems: NonNegativeInt


class Probe(_Part):
    """How well an arm's success probability holds on the test problems."""

    kind: Text
    reference: Text
    auroc: Interval | None
    """None where all answers are right, or all are wrong."""
    ece: Interval
    brier: Interval
    spearman: Interval | None
    reliability: tuple[ReliabilityBin, ...]
    roc: tuple[tuple[Share, Share], ...]
    """(false positive rate, true positive rate)."""


class Arm(_Part):
    name: Text
    model: Text
    accuracy: Interval
    cost_usd: Interval
    """Per query."""
    tier_cost_usd: NonNegativeFloat
    mean_input_tokens: NonNegativeFloat
    mean_output_tokens: NonNegativeFloat
    probe: Probe | None


class Point(_Part):
    """One knob value on the test problems."""

    knob: JsonValue
    accuracy: Share
    accuracy_low: float
    accuracy_high: float
    cost_usd: NonNegativeFloat


class KnobSpread(_Part):
    """What resampled validation problems would have chosen, and what that does on the test problems."""

    values: tuple[JsonValue, ...]
    saving_sd: NonNegativeFloat
    accuracy_sd: NonNegativeFloat


class Method(_Part):
    """One way of choosing arms, at the knob chosen on validation problems, and over all its knobs."""

    name: Text
    label: Text
    group: Group
    knob: dict[Text, JsonValue] | None
    accuracy: Interval
    cost_usd: Interval
    accuracy_diff: Interval
    saving: Interval
    parity_saving: Interval | None
    peak_accuracy_gain: Interval | None
    aiq: Interval | None
    p_auccc: Interval | None = None
    gap_closed: Interval | None
    limit_share: Interval | None
    apgr: Interval | None
    cpt50: float | None
    cpt80: float | None
    mix: dict[Text, Share]
    frontier: tuple[Point, ...]
    knob_spread: KnobSpread | None


class DifficultyBin(_Part):
    """Problems of like difficulty; from the easiest bin to the hardest."""

    low: float
    high: float
    problems: NonNegativeInt
    mix: dict[Text, Share]


class MixByDifficulty(_Part):
    method: Text
    bins: tuple[DifficultyBin, ...]


class HumanDifficulty(_Part):
    column: Text
    spearman: dict[Text, Interval]


class Verdict(_Part):
    beats_controls: bool
    method: Text | None
    sentence: Text
    accuracy_gain_at_equal_cost: dict[Text, Interval] = {}
    """Of the method, over each control."""


class Problems(_Part):
    validation: NonNegativeInt
    test: NonNegativeInt


class Data(_Part):
    file: Text
    benchmark: Text
    problems: Problems
    k: dict[Text, int]
    tokens: Text = RECORDED
    duplicates_removed: NonNegativeInt


class Evaluation(_Part):
    schema_version: Literal[1]
    provenance: dict[str, JsonValue]
    results_sha256: Text
    data: Data
    notes: tuple[Text, ...]
    arms: tuple[Arm, ...] = Field(min_length=1)
    best_single: Text
    methods: tuple[Method, ...] = Field(min_length=1)
    mix_by_difficulty: tuple[MixByDifficulty, ...]
    human_difficulty: HumanDifficulty | None
    verdict: Verdict

    @model_validator(mode="after")
    def _names_fit(self) -> "Evaluation":
        arms = _unique("arm", (arm.name for arm in self.arms))
        methods = _unique("method", (method.name for method in self.methods))
        named = [
            (arms, "arm", [self.best_single]),
            (arms, "arm", [arm for method in self.methods for arm in method.mix]),
            (arms, "arm", [arm for one in self.mix_by_difficulty for bin_ in one.bins for arm in bin_.mix]),
            (arms, "arm", list(self.human_difficulty.spearman) if self.human_difficulty else []),
            (methods, "method", [one.method for one in self.mix_by_difficulty]),
            (methods, "method", [] if self.verdict.method is None else [self.verdict.method]),
        ]
        for known, what, names in named:
            for name in names:
                if name not in known:
                    raise ValueError(f"{what} {name!r} is named and not described")
        return self

    @property
    def best(self) -> Arm:
        return next(arm for arm in self.arms if arm.name == self.best_single)

    @property
    def variants(self) -> set[str]:
        """Policies `NAME:VARIANT` beside a policy NAME: tables show them, plots only that of the verdict."""
        names = {method.name for method in self.methods if method.group == "policy"}
        return {name for name in names if name.partition(":")[0] in names - {name}} - {self.verdict.method}

    @property
    def cheapest_first(self) -> list[Arm]:
        return sorted(self.arms, key=lambda arm: arm.cost_usd.value)


def _unique(what: str, names: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for name in names:
        if name in found:
            raise ValueError(f"{what} {name!r} is described twice")
        found.add(name)
    return found


def read(folder: Path) -> tuple[Evaluation, bytes, dict[str, str]]:
    """The evaluation in a folder, the bytes of its results.parquet, and the SHA-256 of both files by name.

    Raises:
        DataError: a file is missing or damaged, of another schema version, or one does not fit the other.
    """
    content, results = _bytes(folder / FILE), _bytes(folder / RESULTS)
    evaluation = _parse(content, folder / FILE)
    _check_results(evaluation, results, folder / RESULTS)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in ((FILE, content), (RESULTS, results))}
    return evaluation, results, hashes


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot read {file} ({error.strerror}): `pika evaluate --out {file.parent}` writes it"
        ) from None


def _parse(content: bytes, file: Path) -> Evaluation:
    try:
        return Evaluation.model_validate_json(content)
    except ValidationError as error:
        first: Any = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if where == "schema_version" and first["type"] == "literal_error":
            raise DataError(
                f"{file} has schema version {first['input']!r}, and this pika reads {SCHEMA_VERSION}: run the "
                "`pika report` of the version that evaluated, or `pika evaluate` again"
            ) from None
        raise DataError(f"{file}: {where or 'the file'}: {first['msg']}; run `pika evaluate` again") from None


def _check_results(evaluation: Evaluation, results: bytes, file: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_metadata(io.BytesIO(results))
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {file} as parquet ({error}): run `pika evaluate` again") from None
    names = {printable(name) for name in found.schema.to_arrow_schema().names}
    rows = evaluation.data.problems.test
    lacks = [arm.name for arm in evaluation.arms if f"success:{arm.name}" not in names]
    if lacks or found.num_rows != rows:
        what = f"the arms {', '.join(lacks)}" if lacks else f"{rows} rows: it has {found.num_rows}"
        raise DataError(f"{file} is not of the same evaluation as {FILE}, it lacks {what}; run `pika evaluate` again")
    if hashlib.sha256(results).hexdigest() != evaluation.results_sha256:
        raise DataError(
            f"{file} is not of the same evaluation as {FILE}, which knows another by its SHA-256: `pika evaluate` was "
            "interrupted, or one of the two copied; run it again"
        )
