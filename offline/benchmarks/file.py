"""Problems of one's own: a parquet, JSONL or CSV file with a column of questions and one of answers.

    pika rollouts pool.yaml --benchmark file --dataset problems.csv --verifier numeric \\
        --question-column question --answer-column answer --split train=all --split test=all --out rollouts.parquet

Such a file may look like this:

    question,answer,topic
    "How many days have seven weeks?",49,calendar
    "Which number is half of 9?",4.5,arithmetic

The verifier is one of `offline/verifiers`. `--split-column` names the column that says train, validation or test;
without it the text alone decides: three fifths, a fifth and a fifth. `--id-column` names the problems. Other columns
are kept as metadata where they hold numbers and short texts.
"""

import csv
import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from offline.benchmarks.base import BenchmarkError, Source
from offline.dataset_benchmark import DatasetBenchmark, Row
from offline.dataset_rows import Cells, Part
from offline.evaluate import split_name
from offline.verifiers import base as verifiers

SUFFIXES = (".parquet", ".jsonl", ".csv")
SHORT = 200
"""Characters of a text that is kept as metadata."""


class File(DatasetBenchmark):
    strict = True

    def __init__(self, source: Source | None = None) -> None:
        source = source or Source()
        missing = [
            option
            for option, value in (
                ("--dataset FILE", source.dataset),
                ("--verifier NAME", source.verifier),
                ("--question-column NAME", source.question_column),
                ("--answer-column NAME", source.answer_column),
            )
            if not value
        ]
        if missing:
            raise BenchmarkError(f"--benchmark file needs {', '.join(missing)}")
        if source.config or source.revision:
            raise BenchmarkError("a file has neither configurations nor revisions: leave both options out")
        self.dataset, self.verifier = str(source.dataset), str(source.verifier)
        self.question, self.answer = (str(source.question_column),), (str(source.answer_column),)
        self.needs = [column for column in (source.id_column, source.split_column) if column]
        super().__init__(source)

    def check_source(self) -> None:
        try:
            verifiers.load(self.verifier)
        except verifiers.VerifierError as error:
            raise BenchmarkError(str(error)) from error

    def problem_id(self, row: Row, text: str) -> str:
        return row.text(self.source.id_column) if self.source.id_column else super().problem_id(row, text)

    def about(self, row: Row) -> dict[str, Any]:
        used = {*self.question, *self.answer, *self.needs}
        return {name: value for name, value in row.cells.items() if name not in used and _is_short(value)}

    def provenance(self) -> dict[str, Any]:
        return {**super().provenance(), "verifier": self.verifier}

    def split_of(self, group: str, shipped: str, all_shipped: Collection[str]) -> str | None:
        return shipped if self.source.split_column else super().split_of(group, shipped, all_shipped)

    def read(self) -> list[Part]:
        file = Path(self.where)
        if file.suffix not in SUFFIXES:
            raise BenchmarkError(f"{file}: its name must end in {', '.join(SUFFIXES)}, which say the format")
        if not file.is_file():
            raise BenchmarkError(f"there is no file {file}")
        try:
            columns, rows = _read(file)
        except (ValueError, RecursionError, csv.Error) as error:  # pyarrow's are ValueErrors
            raise BenchmarkError(f"{file} cannot be read as {file.suffix[1:]}: {error}") from error
        if not rows:
            raise BenchmarkError(f"{file} holds no problems")
        self.check_columns(columns)
        parts: dict[str, Part] = {}
        texts: dict[str, str] = {}
        for number, cells in enumerate(rows, 1):
            row = Row(cells, "")
            for column in (column for column in self.needs if column in columns and not row.text(column)):
                raise BenchmarkError(f"{file}: row {number} has nothing in column {column}")
            if self.source.id_column:
                text, row_id = row.text(*self.question), row.text(self.source.id_column)
                if texts.setdefault(row_id, text) != text:
                    raise BenchmarkError(f"{file}: {self.source.id_column} {row_id!r} stands for two problems")
            split = split_name(row.text(self.source.split_column)) if self.source.split_column else "all"
            parts.setdefault(split, Part(split, columns, [])).rows.append(cells)
        return list(parts.values())


def _is_short(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (bool, int)) or (isinstance(value, str) and 0 < len(value) <= SHORT)


def _read(file: Path) -> tuple[list[str], list[Cells]]:
    """The names of all columns, and the rows.

    Raises:
        ValueError, RecursionError, csv.Error: it is of another form.
        OSError: it cannot be read.
    """
    if file.suffix == ".parquet":
        import pyarrow.parquet

        with file.open("rb") as opened:
            table = pyarrow.parquet.read_table(opened)
        return table.column_names, table.to_pylist()
    rows: list[Any]
    if file.suffix == ".csv":
        csv.field_size_limit(2**31 - 1)
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines))
        if any(None in row for row in rows):
            raise ValueError("a row has more fields than there are columns")
    else:
        # By line feeds alone: str.splitlines knows others, which JSON's texts may hold.
        rows = [json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip()]
        if not all(isinstance(row, dict) for row in rows):
            raise ValueError("each line must be a JSON object")
        json.dumps(rows, ensure_ascii=False).encode()  # fails on half a surrogate pair, which escapes can name
    return list(dict.fromkeys(name for row in rows for name in row)), rows
