"""Every answer in a file of rollouts, as matrices: what `pika evaluate` judges by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from offline.evaluate import DataError, Outcomes, outcomes_of, read_rollouts, same_text
from routing_policies.base import FloatArray
from server.config import Settings

if TYPE_CHECKING:
    import pandas

COLUMNS = (
    "arm", "split", "problem_id", "problem", "benchmark", "model", "k", "correct", "success_rate", "input_tokens",
    "output_tokens",
)  # fmt: skip
OPTIONAL = ("extracted_answers", "metadata")


@dataclass(frozen=True)
class Arm:
    """One arm's k answers to each of n problems."""

    name: str
    model: str
    correct: FloatArray
    """0 or 1, (n, k)."""
    output_tokens: FloatArray
    """(n, k)"""
    input_usd: FloatArray
    """What reading the prompt costs once, (n,)."""
    output_usd: FloatArray
    """What each answer costs beside, (n, k)."""
    answers: list[list[str]] | None
    """As extracted, n x k; None where the file has none, as where only verdicts are on record."""

    @property
    def k(self) -> int:
        return len(self.correct[0])

    @cached_property
    def usd(self) -> FloatArray:
        """Mean USD of one answer to each problem, (n,)."""
        usd: FloatArray = self.input_usd + self.output_usd.mean(axis=1)
        return usd


@dataclass(frozen=True)
class Samples:
    """What a pool's arms answered to the problems of one split."""

    outcomes: Outcomes
    arms: tuple[Arm, ...]
    benchmark: str
    duplicates_removed: int
    """Problems whose text stood in the split before."""
    metadata: list[str | None] | None
    """JSON text of each problem."""

    @cached_property
    def success_rate(self) -> FloatArray:
        """(n, arms)"""
        return self.outcomes.success_rate

    @cached_property
    def usd(self) -> FloatArray:
        """Measured mean USD of one answer, (n, arms)."""
        return np.stack([arm.usd for arm in self.arms], axis=1)


def read_samples(
    file: Path, splits: Sequence[str], settings: Settings, optional: Sequence[str] = ()
) -> dict[str, Samples]:
    """The answers of a pool's arms to the problems of some splits, priced as the configuration says.

    Args:
        optional: splits that the file need not have.

    Raises:
        DataError: the file cannot be read, lacks columns, splits, arms or rows, contradicts itself, or has a problem in
            two of the splits.
    """
    frame, sha256 = read_rollouts(file, COLUMNS, OPTIONAL)
    found = {}
    there = set(frame["split"])
    for split in (*splits, *(name for name in optional if name in there)):
        rows, duplicates = _without_repetitions(frame, split)
        outcomes = outcomes_of(rows, split, list(settings.arms), file, sha256)
        rows = rows[rows["split"] == split]
        by_arm = {
            name: rows[rows["arm"] == name].set_index("problem_id").loc[outcomes.problem_ids] for name in settings.arms
        }
        arms = tuple(_arm(name, by_arm[name], settings, outcomes, file) for name in settings.arms)
        first = by_arm[arms[0].name]
        metadata = first["metadata"].tolist() if "metadata" in first else None
        found[split] = Samples(outcomes, arms, str(first["benchmark"].iloc[0]), duplicates, metadata)
    return found


def check_leakage(splits: Mapping[str, Samples]) -> None:
    """
    Raises:
        DataError: a problem stands in two of the splits.
    """
    seen: dict[str, str] = {}
    for split, samples in splits.items():
        texts = [same_text(str(problem)) for problem in samples.outcomes.problems]
        leaks = [(text, seen[text]) for text in texts if text in seen]
        if leaks:
            text, other = leaks[0]
            raise DataError(
                f"leakage: {len(leaks)} {split} problems stand in {other} too, such as {text[:80]!r}; "
                "remove them from one of the two, or split anew"
            )
        seen |= dict.fromkeys(texts, split)


def _without_repetitions(frame: "pandas.DataFrame", split: str) -> "tuple[pandas.DataFrame, int]":
    """Each text of the split once, under the first of its ids; how many further ids are left out."""
    problems = frame.loc[frame["split"] == split, ["problem_id", "problem"]].drop_duplicates()
    repeats = problems["problem"].astype(str).map(same_text).duplicated()
    again = problems.loc[repeats & ~problems["problem_id"].duplicated(keep=False)]
    return frame[(frame["split"] != split) | ~frame["problem_id"].isin(again["problem_id"])], len(again)


def _arm(name: str, rows: "pandas.DataFrame", settings: Settings, outcomes: Outcomes, file: Path) -> Arm:
    counts = sorted(set(rows["k"]))
    if len(counts) > 1 or not counts[0] >= 1:
        raise DataError(
            f"{file}: arm {name!r} has {' and '.join(map(str, counts))} answers per problem: sample all problems of a "
            "split alike"
        )
    k, price = int(counts[0]), settings.models[settings.arms[name].model].usd_per_million_tokens
    rate = rows["success_rate"].to_numpy(dtype=np.float64)
    correct = _lists(rows["correct"], k)
    if correct is None and k == 1:
        correct = rate[:, None]
    tokens = _lists(rows["output_tokens"], k)
    if correct is None or tokens is None:
        what = "correct" if correct is None else "output_tokens"
        raise DataError(f"{file}: arm {name!r} has rows without {k} values in {what}: sample again, or convert anew")
    if np.abs(correct.mean(axis=1) - rate).max() > 1e-6:
        raise DataError(f"{file}: arm {name!r} has rows whose success_rate is not the mean of correct: convert anew")
    answers = rows["extracted_answers"].tolist() if "extracted_answers" in rows else []
    told = all(one is not None and len(one) == k for one in answers) and any(any(one) for one in answers)
    return Arm(
        name=name,
        model=str(rows["model"].iloc[0]),
        correct=correct,
        output_tokens=tokens,
        input_usd=rows["input_tokens"].to_numpy(dtype=np.float64) * price.input / 1e6,
        output_usd=tokens * price.output / 1e6,
        answers=[[str(answer) for answer in one] for one in answers] if told else None,
    )


def _lists(column: Any, k: int) -> FloatArray | None:
    """Lists of k numbers as (n, k); None where one has another length or is no list of numbers."""
    if any(one is None or len(one) != k for one in column):
        return None
    values = np.stack([np.asarray(one, dtype=np.float64) for one in column])
    return values if np.isfinite(values).all() else None
