"""Rollouts as matrices to train on: one row per problem, one column per arm."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offline.evaluate import DataError, read_rollouts, same_text
from probes.base import FloatArray
from probes.card import MeanTokens

COLUMNS = (
    "problem_id", "split", "benchmark", "problem", "arm", "model", "k", "temperature", "max_tokens", "success_rate",
    "majority_vote_is_correct", "input_tokens", "output_tokens",
)  # fmt: skip
PROBLEM = ["split", "problem_id"]
"""What names a problem."""
NUMBERS = (
    "k", "temperature", "max_tokens", "success_rate", "majority_vote_is_correct", "input_tokens", "output_tokens",
)  # fmt: skip
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class ArmRollouts:
    """How one arm's answers were sampled."""

    name: str
    model: str
    k: int
    temperature: float
    max_tokens: int
    mean_tokens: MeanTokens
    """Over the training problems."""


@dataclass(frozen=True)
class Sampled:
    """Which rollouts are meant where a file holds several kinds; None: whichever there are."""

    k: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class TrainingSet:
    problems: list[str]
    """n texts, each once."""
    split: NDArray[np.str_]
    """(n,)"""
    success_rate: FloatArray
    """(n, arms)"""
    majority_vote_is_correct: FloatArray
    """0 or 1, (n, arms)"""
    output_tokens: FloatArray
    """Mean over each problem's answers, (n, arms)."""
    arms: tuple[ArmRollouts, ...]
    benchmark: str
    sha256: str
    """Of the whole file."""

    def rows(self, split: str) -> NDArray[np.bool_]:
        rows: NDArray[np.bool_] = self.split == split
        return rows


def read_training_set(file: Path, arms: Sequence[str], sampled: Sampled = Sampled()) -> TrainingSet:
    """Rollouts of some arms on problems of all three splits; rows that were sampled otherwise are left out.

    Raises:
        DataError: the file cannot be read, lacks columns, arms, splits or rows, or contradicts itself.
    """
    frame, sha256 = read_rollouts(file, COLUMNS)
    unknown = [arm for arm in arms if arm not in set(frame["arm"])]
    if unknown:
        raise DataError(f"{file} has no rollouts of arm {unknown[0]!r}; it has {', '.join(sorted(set(frame['arm'])))}")
    frame = frame[frame["arm"].isin(arms)]
    for column in NUMBERS:
        if frame[column].isna().any():
            raise DataError(f"{file}: {column} is missing in some rows: it must be a number in each")
    frame = _sampled(frame, sampled, arms, file)
    problems = _problems(frame, file)
    rates = _matrix(frame, "success_rate", problems, arms, file)
    if not ((rates >= 0) & (rates <= 1)).all():  # NaN fails both
        raise DataError(f"{file}: success_rate must lie in [0, 1]; some rows do not")
    benchmarks = sorted(set(frame["benchmark"]))
    if len(benchmarks) > 1:
        raise DataError(f"{file} mixes benchmarks ({', '.join(benchmarks)}): train on one at a time")
    return TrainingSet(
        problems=problems["problem"].tolist(),
        split=problems["split"].to_numpy(dtype=np.str_),
        success_rate=rates,
        majority_vote_is_correct=_matrix(frame, "majority_vote_is_correct", problems, arms, file),
        output_tokens=_matrix(
            frame.assign(output_tokens=frame["output_tokens"].map(np.mean)), "output_tokens", problems, arms, file
        ),
        arms=tuple(_arm(frame[frame["arm"] == arm], arm, file) for arm in arms),
        benchmark=str(benchmarks[0]),
        sha256=sha256,
    )


def _sampled(frame: Any, sampled: Sampled, arms: Sequence[str], file: Path) -> Any:
    """The rows that were sampled as asked."""
    asked = {column: value for column, value in asdict(sampled).items() if value is not None}
    fits = np.all([frame[column] == value for column, value in asked.items()], axis=0) if asked else slice(None)
    kept = frame[fits]
    for arm in arms:
        if not (kept["arm"] == arm).any():
            there = frame.loc[frame["arm"] == arm, list(asked)].drop_duplicates().to_dict("records")
            raise DataError(
                f"{file} has no rollouts of arm {arm!r} with {_pairs(asked)}; it has some with "
                f"{' and with '.join(map(_pairs, there))}"
            )
    return kept


def _pairs(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _problems(frame: Any, file: Path) -> Any:
    """Every problem once, with its id and split, in the file's order."""
    problems = frame[[*PROBLEM, "problem"]].drop_duplicates()
    torn = problems[problems.duplicated(PROBLEM)]
    if not torn.empty:
        split, problem_id = torn[PROBLEM].iloc[0]
        raise DataError(f"{file}: {problem_id!r} in {split} stands for several problems: give each its own id")
    texts = problems["problem"].map(same_text)
    twice = texts[texts.duplicated(keep=False)]
    if not twice.empty:
        first = problems[texts == twice.iloc[0]]
        where = ", ".join(f"{row.problem_id!r} in {row.split}" for row in first.itertuples())
        raise DataError(
            f"{file}: one problem stands under several ids or in several splits ({where}): remove the repetition"
        )
    for split in SPLITS:
        if not (problems["split"] == split).any():
            raise DataError(f"{file} has no {split} problems: run `pika rollouts` with --split {split}=N")
    return problems[problems["split"].isin(SPLITS)]


def _matrix(frame: Any, column: str, problems: Any, arms: Sequence[str], file: Path) -> FloatArray:
    """One column as (problems, arms)."""
    twice = frame[frame.duplicated(["arm", *PROBLEM])]
    if not twice.empty:
        first = twice.iloc[0]
        raise DataError(f"{file}: {len(twice)} rows stand twice, such as {first['arm']!r} on {first['problem_id']!r}")
    wide = frame.assign(value=frame[column].astype(float)).pivot(index=PROBLEM, columns="arm", values="value")
    wide = wide.loc[list(problems[PROBLEM].itertuples(index=False, name=None)), list(arms)]
    for arm in arms:
        lacking = int(wide[arm].isna().sum())
        if lacking:
            raise DataError(
                f"{file}: arm {arm!r} lacks {lacking} of {len(wide)} problems: run the same `pika rollouts` command "
                "again, which goes on where it stopped, or leave the arm out with --arms"
            )
    values: FloatArray = wide.to_numpy(dtype=np.float64)
    return values


def _arm(rows: Any, name: str, file: Path) -> ArmRollouts:
    for column in ("model", "k", "temperature", "max_tokens"):
        found = sorted(set(rows[column]))
        if len(found) > 1:
            raise DataError(
                f"{file}: arm {name!r} mixes {column} {', '.join(map(str, found))}: its labels would mean different "
                "things; sample all of them alike"
            )
    first, train = rows.iloc[0], rows[rows["split"] == "train"]
    output_tokens = np.concatenate(train["output_tokens"].tolist())
    return ArmRollouts(
        name=name,
        model=str(first["model"]),
        k=int(first["k"]),
        temperature=float(first["temperature"]),
        max_tokens=int(first["max_tokens"]),
        mean_tokens=MeanTokens(input=float(train["input_tokens"].mean()), output=float(output_tokens.mean())),
    )
