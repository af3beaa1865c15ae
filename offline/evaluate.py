"""Outcomes of rollouts as matrices, and how sure one may be of a mean over problems."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from offline.provenance import sha256

if TYPE_CHECKING:
    import pandas

FloatArray = NDArray[np.float64]

DRAWS = 10_000
CHUNK = 4_000_000
"""Indices drawn at once, so that memory stays at some 50 MB."""
COLUMNS = ("arm", "split", "problem_id", "problem", "success_rate", "input_tokens")


class DataError(ValueError):
    """A file of rollouts cannot be used; the message names the fix."""


@dataclass(frozen=True)
class Outcomes:
    """What the arms did on the problems of one split."""

    problem_ids: list[str]
    problems: list[str]
    """Texts, n of them."""
    success_rate: FloatArray
    """Share of correct rollouts, (n, k), arms in the order asked for."""
    input_tokens: FloatArray
    """Prompt tokens as each arm counts, (n, k)."""
    sha256: str
    """Of the whole file."""


def split_name(text: str) -> str:
    """As we write it: the research project's tables say `val`."""
    return "validation" if text == "val" else text


def same_text(problem: str) -> str:
    """What two problems share that differ in white space alone."""
    return " ".join(problem.split())


@contextmanager
def reading_parquet(file: Path, wanted: str = "one that `pika rollouts` wrote") -> Iterator[None]:
    """
    Args:
        wanted: what file it should be, for the error.

    Raises:
        DataError: inside, it was not there, or could not be read as parquet.
    """
    import pyarrow

    try:
        yield
    except FileNotFoundError:  # whose message is the name alone
        raise DataError(f"there is no file {file}: name {wanted}") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"cannot read {file} as parquet: {' '.join(str(error).split())}") from error


def read_rollouts(file: Path, columns: Sequence[str], optional: Sequence[str] = ()) -> tuple["pandas.DataFrame", str]:
    """Some columns of a parquet of rollouts, and the SHA-256 of the whole file.

    Args:
        optional: columns that the file need not have.

    Raises:
        DataError: the file cannot be read, or lacks one of the columns.
    """
    import pyarrow.parquet

    with reading_parquet(file):
        names = pyarrow.parquet.read_schema(file).names
        missing = [column for column in columns if column not in names]
        if missing:
            raise DataError(f"{file} lacks the columns {', '.join(missing)}; `pika rollouts` writes them")
        wanted = [*columns, *(column for column in optional if column in names)]
        frame = pyarrow.parquet.read_table(file, columns=wanted).to_pandas()
        digest = sha256(file)
    return frame, digest


def read_outcomes(file: Path, split: str, arms: list[str]) -> Outcomes:
    """The outcomes of one split in a parquet of rollouts, which holds each of the arms on each of its problems.

    Rows of other arms are left out.

    Raises:
        DataError: the file cannot be read, lacks columns, rows or arms, or has rows twice or with values that no
            success rate or token count can have.
    """
    frame, sha256 = read_rollouts(file, COLUMNS)
    return outcomes_of(frame, split, arms, file, sha256)


def outcomes_of(frame: "pandas.DataFrame", split: str, arms: list[str], file: Path, sha256: str) -> Outcomes:
    """The same of rollouts that are read already."""
    rows = frame[frame["split"] == split]
    if rows.empty:
        raise DataError(f"{file} has no rows of split {split!r}; its splits: {', '.join(sorted(set(frame['split'])))}")
    there = sorted(set(rows["arm"]))
    rows = rows[rows["arm"].isin(arms)]
    if rows.empty:
        raise DataError(f"{file} has no {split} rows of the arms {', '.join(arms)}; it has {', '.join(there)}")
    twice = rows[rows.duplicated(["arm", "problem_id"])]
    if not twice.empty:
        first = twice.iloc[0]
        raise DataError(f"{file}: {len(twice)} rows stand twice, such as {first['arm']!r} on {first['problem_id']!r}")
    ids = rows["problem_id"].unique().tolist()
    for arm in arms:
        lacks = set(ids) - set(rows.loc[rows["arm"] == arm, "problem_id"])
        if lacks:
            raise DataError(
                f"{file}: arm {arm!r} lacks {len(lacks)} of the {len(ids)} {split} problems, such as {min(lacks)!r}; "
                "run `pika rollouts` for it"
            )
    texts = rows.drop_duplicates(["problem_id", "problem"])
    if len(texts) > len(ids):
        raise DataError(f"{file}: a problem_id stands for different problems in different rows")
    rates, tokens = (
        rows.pivot(index="problem_id", columns="arm", values=value).loc[ids, arms].to_numpy(dtype=np.float64)
        for value in ("success_rate", "input_tokens")
    )
    # NaN fails both comparisons.
    if not ((rates >= 0) & (rates <= 1)).all() or not (tokens >= 0).all():
        raise DataError(
            f"{file}: success_rate must lie in [0, 1] and input_tokens be counts; some rows of {split} are not"
        )
    return Outcomes(ids, texts["problem"].tolist(), rates, tokens, sha256)


def mean_interval(values: ArrayLike, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap confidence interval of a mean over problems, (n,) -> (low, high). Percentile method.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Raises:
        ValueError: no values, or one is NaN or infinite.
    """
    sample = np.asarray(values, dtype=np.float64)
    n = len(sample)
    if sample.ndim != 1 or n == 0 or not np.isfinite(sample).all():
        raise ValueError("a bootstrap needs one finite value per problem, and at least one problem")
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    means = [
        sample[rng.integers(n, size=(min(rows, draws - start), n), dtype=np.int32)].mean(axis=1)  # (rows,)
        for start in range(0, draws, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return float(low), float(high)


def paired_bootstrap(a: ArrayLike, b: ArrayLike, draws: int = DRAWS, seed: int = 0) -> tuple[float, float]:
    """95% bootstrap confidence interval of mean(a) - mean(b), both measured on the same problems, (n,), (n,).

    Raises:
        ValueError: the lengths differ, there are no problems, or a value is NaN or infinite.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"a paired bootstrap compares the same problems, not {first.shape} with {second.shape}")
    return mean_interval(first - second, draws, seed)
