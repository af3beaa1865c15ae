"""Benchmarks that are data sets: what their rows have in common, and which problem is in which split.

A benchmark of this kind says where its rows are, in which columns question and answer stand, and who verifies:

    class Gsm8k(DatasetBenchmark):
        dataset, config = "openai/gsm8k", "main"
        question, answer = ("question",), ("answer",)
        verifier = "math"

What comes of it does not depend on the rows' order, and no problem is in two splits, whatever the seed: the seed says
which problems of a split come first.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from offline.benchmarks.base import Benchmark, BenchmarkError, Problem, Source
from offline.dataset_rows import Cells, Part, read_repository
from offline.evaluate import same_text
from offline.verifiers.base import Verifier, VerifierError, load
from probes.legacy_card import SUFFIX

MATHEMATICS = SUFFIX
"""Asks for reasoning in steps and the answer in a box, in the words that the research project's probes know."""
CODE = "\n\nThink step by step, then give the whole solution in Python, in one ```python code block."
CHOICE = "\n\nThink step by step, then give the letter of the right answer alone within \\boxed{}."

VALIDATION_SHARE = 0.2
"""Of train, where a data set ships train and test but no validation split."""
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}
"""Where it ships no train or no test split: all of its rows are cut into these."""
SPLIT_NAMES = {"val": "validation", "dev": "validation", "eval": "test"}
PRECEDENCE = ("test", "validation", "train")
"""A problem that a data set ships in several splits stays in the first of these."""


@dataclass(frozen=True)
class Row:
    cells: Cells
    split: str
    """As the data set ships it."""

    def text(self, *columns: str) -> str:
        """What stands in the first of these columns that the row has; empty where it is null or NaN."""
        value = next((self.cells[column] for column in columns if column in self.cells), None)
        return "" if value is None or value != value else str(value)


@dataclass(frozen=True)
class Place:
    """Where the row of a problem is."""

    part: Part
    index: int
    text: str
    """What tells it from other problems: its question, white space aside."""


class DatasetBenchmark(Benchmark):
    dataset: str
    """The repository on the Hub, owner/name."""
    config: str | None = None
    question: Sequence[str]
    """The column of questions: the first of these that is there."""
    answer: Sequence[str]
    """The column of answers, likewise."""
    needs: Sequence[str] = ()
    """Further columns without which there is no problem."""
    keeps: Sequence[str] = ()
    """The columns that are kept as metadata, where they are there."""
    strict = False
    """Whether a problem in two shipped splits, or an answer that the verifier does not take, is refused: in a file of
    one's own they can be mended. Of published data such a problem is left out, and a note says so."""

    def __init__(self, source: Source | None = None) -> None:
        self.source = source or Source()
        self._notes: dict[str, None] = {}
        self.check_source()

    def check_source(self) -> None:
        """
        Raises:
            BenchmarkError: the source says what only `file` needs.
        """
        source = self.source
        if any((source.verifier, source.question_column, source.answer_column, source.id_column, source.split_column)):
            raise BenchmarkError(f"{self.name} knows its verifier and columns: these options go with --benchmark file")

    # What a benchmark may have of its own.

    def text(self, row: Row, seed: int) -> str:
        """The problem that a row asks."""
        return row.text(*self.question)

    def truth(self, row: Row, seed: int) -> str:
        """The right answer, as the verifier takes it; empty where the row has none."""
        return row.text(*self.answer).strip()

    def group(self, row: Row) -> str:
        """Rows of equal groups are in the same split."""
        return same_text(row.text(*self.question))

    def about(self, row: Row) -> dict[str, Any]:
        """The metadata of a row."""
        return {column: row.cells[column] for column in self.keeps if row.text(column)}

    def problem_id(self, row: Row, text: str) -> str:
        """The same problem has the same id in all data sets and in rollouts of others."""
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self) -> list[Part]:
        return read_repository(self.where, self._config, self.source.revision, preferred=self.config)

    def split_of(self, group: str, shipped: str, all_shipped: Collection[str]) -> str | None:
        """The split of a row; None where it is in none.

        Args:
            shipped: the split that the data set ships it in.
            all_shipped: all that it ships.
        """
        if not {"train", "test"} <= {*all_shipped}:
            return _cut(group, SHARES)
        if shipped == "train" and "validation" not in all_shipped:
            return _cut(group, {"validation": VALIDATION_SHARE, "train": 1 - VALIDATION_SHARE})
        return shipped if shipped in self.splits else None

    # What is the same for all.

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2]

    @property
    def where(self) -> str:
        return self.source.dataset or self.dataset

    @property
    def _config(self) -> str | None:
        """As it is named; another repository need not have the benchmark's own."""
        return self.source.config or (None if self.source.dataset else self.config)

    def problems(self, split: str, n: int | None, seed: int) -> list[Problem]:
        if split not in self._places:
            raise BenchmarkError(f"{self.name} has no split {split!r}: choose one of {', '.join(self._places)}")
        problems: list[Problem] = []
        unanswered = 0
        for place in sorted(self._places[split], key=lambda place: _number(f"order/{seed}/{place.text}")):
            if len(problems) == n:
                break
            row = Row(place.part.rows[place.index], place.part.split)
            text, truth = self.text(row, seed), self.truth(row, seed)
            if self._is_answer(truth, text):
                problems.append(Problem(self.problem_id(row, text), split, text, truth, self.about(row)))
            else:
                unanswered += 1
        if unanswered:
            self._notes[f"rows of {split} without an answer: {unanswered} left out"] = None
        if not problems or len(problems) < (n or 0):
            raise BenchmarkError(
                f"{self.name}: split {split!r} of {self.where} has {len(problems)} problems, {n or 'some'} asked for: "
                f"ask for fewer, or for --split {split}=all"
            )
        return problems

    def _is_answer(self, truth: str, text: str) -> bool:
        if not truth:
            return False
        try:
            self._verifier.is_correct(None, truth)
        except VerifierError as error:
            if self.strict:
                raise BenchmarkError(f"{self.where}: {error}, in the problem {text[:80]!r}") from error
            return False
        return True

    @cached_property
    def _verifier(self) -> Verifier:
        return load(self.verifier)

    def provenance(self) -> dict[str, Any]:
        facts = {"dataset": self.where, "config": self._config, "revision": self.source.revision}
        return {name: value for name, value in facts.items() if value is not None}

    @property
    def notes(self) -> list[str]:
        return list(self._notes)

    @cached_property
    def _places(self) -> dict[str, list[Place]]:
        """By split, each problem once."""
        parts = self.read()
        for part in parts:
            self.check_columns(part.columns)
        all_shipped = {_split_name(part.split) for part in parts}
        places: dict[str, list[Place]] = {split: [] for split in self.splits}
        found_in: dict[str, str] = {}
        dropped: Counter[str] = Counter()
        for part in sorted(parts, key=lambda part: _precedence(part.split)):
            shipped = _split_name(part.split)
            for index, cells in enumerate(part.only(self._light_columns(part))):
                row = Row(cells, part.split)
                text = same_text(row.text(*self.question))
                split = self.split_of(self.group(row), shipped, all_shipped)
                if not text:
                    dropped["rows without a question"] += 1
                elif split is None:
                    dropped[f"rows of its split {part.split!r}, which is not used"] += 1
                elif text not in found_in:
                    found_in[text] = split
                    places.setdefault(split, []).append(Place(part, index, text))
                elif found_in[text] == split:
                    dropped["rows that repeat a problem"] += 1
                elif self.strict:
                    raise BenchmarkError(
                        f"{self.where}: a problem of {split} stands in {found_in[text]} too, which is leakage: "
                        f"take it out of one of them: {text[:80]!r}"
                    )
                else:
                    dropped[f"problems of {split} that stand in {found_in[text]} too"] += 1
        self._notes |= {f"{what}: {count} left out": None for what, count in dropped.items()}
        return {split: found for split, found in places.items() if found}

    def check_columns(self, columns: Collection[str]) -> None:
        """
        Raises:
            BenchmarkError: one that is needed is missing; names it and those that are there.
        """
        for names in (self.question, self.answer, *((name,) for name in self.needs)):
            if not any(name in columns for name in names):
                raise BenchmarkError(
                    f"{self.where} has no column {' or '.join(names)}; its columns: {', '.join(columns)}"
                )

    def _light_columns(self, part: Part) -> list[str]:
        """Those that tell problems apart; answers may be megabytes of tests."""
        return [column for column in (*self.question, "id") if column in part.columns]


def _split_name(shipped: str) -> str:
    return SPLIT_NAMES.get(shipped, shipped)


def _precedence(shipped: str) -> int:
    name = _split_name(shipped)
    return PRECEDENCE.index(name) if name in PRECEDENCE else len(PRECEDENCE)


def _cut(group: str, shares: Mapping[str, float]) -> str:
    """By the text alone, never by --seed: what was trained on with one seed is not tested on with another."""
    place = _number(f"split/{group}") / 2**64
    for split, share in shares.items():
        place -= share
        if place < 0:
            return split
    return split


def _number(text: str) -> int:
    """Uniform below 2^64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
