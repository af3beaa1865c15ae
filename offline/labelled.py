"""Problems and how one arm answered them, by split; of our rollouts, or of the research project's tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from offline.evaluate import DataError, read_rollouts, reading_parquet, split_name
from probes.base import FloatArray

TEXT = ("problem", "question")


@dataclass(frozen=True)
class Rows:
    problems: list[str]
    """n texts."""
    rate: FloatArray
    """The label, in [0, 1], (n,)."""


@dataclass(frozen=True)
class Labelled:
    splits: dict[str, Rows]
    sha256: str
    """Of the whole file."""
    file: Path

    def rows(self, split: str) -> Rows:
        """Raises DataError where there are none."""
        if split not in self.splits:
            raise DataError(f"{self.file} has no rows of split {split!r}; its splits: {', '.join(self.splits)}")
        return self.splits[split]


def read_labelled(file: Path, arm: str, label: str) -> Labelled:
    """An arm's rows of a parquet; all rows where it has no column `arm`.

    Raises:
        DataError: the file cannot be read, lacks columns or the arm, or a label is no share.
    """
    names = _columns(file)
    text = next((name for name in TEXT if name in names), TEXT[0])
    wanted = [text, "split", label, *(["arm"] if "arm" in names else [])]
    frame, sha256 = read_rollouts(file, wanted)
    if "arm" in names:
        there = sorted(set(frame["arm"]))
        frame = frame[frame["arm"] == arm]
        if frame.empty:
            raise DataError(f"{file} has no rows of arm {arm!r}: name one of {', '.join(there)} with --arm")
    if frame[label].dtype.kind not in "biuf":  # a column of texts, or one in which some are missing
        raise DataError(f"{file}: {label} must be a number in every row; convert the column")
    rate = frame[label].to_numpy(dtype=np.float64)
    if not ((rate >= 0) & (rate <= 1)).all():  # NaN fails both
        raise DataError(f"{file}: {label} must lie in [0, 1]; some rows do not")
    if frame.duplicated(["split", text]).any():
        raise DataError(f"{file}: arm {arm!r} has problems twice in one split; keep one row of each")
    return Labelled(_by_split(frame, text, rate), sha256, file)


def _by_split(frame: Any, text: str, rate: FloatArray) -> dict[str, Rows]:
    split = frame["split"].map(split_name).to_numpy()
    problems = frame[text].astype(str).to_numpy()
    return {str(name): Rows(problems[split == name].tolist(), rate[split == name]) for name in dict.fromkeys(split)}


def _columns(file: Path) -> list[str]:
    import pyarrow.parquet

    with reading_parquet(file, "one of labelled texts"):
        names: list[str] = pyarrow.parquet.read_schema(file).names
    return names
