"""Correctness sets as others keep them: which answers of which models to which problems are right, in any table.

LONG tables have a row per problem and model (and per sample, where there are several):

    idx, problem, ground_truth, model, response, is_correct

WIDE tables have a row per problem and a column per model with 1 or 0, or a score, as RouterBench and RouteLLM keep
them; a column such as `gpt-4|model_response` or `gpt-4_response` beside it holds what the model said:

    prompt, mistralai/Mixtral-8x7B-Instruct-v0.1, gpt-4-1106-preview, gpt-4-1106-preview_response
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from offline.evaluate import DataError

ROLES: dict[str, tuple[str, ...]] = {
    "problem": ("problem", "question", "prompt", "query", "instruction"),
    "id": ("problem_id", "id", "idx", "question_id", "sample_id"),
    "split": ("split",),
    "ground_truth": ("ground_truth", "answer", "target", "reference"),
    "model": ("model", "model_name", "arm", "llm"),
    "correct": ("is_correct", "correct", "score", "label", "performance"),
    "response": ("response", "model_response", "generation", "completion", "output"),
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
}
"""What a column may be, and by which names it is known, the first that is there."""
OF_PROBLEM = ("problem", "id", "split", "ground_truth")
"""Roles that say something of the problem, whatever the model."""
RESPONSE = ("|model_response", "_response", "|response")
"""What follows a model's name in a wide table's column of its responses."""
WORDS = {"true": True, "correct": True, "yes": True, "false": False, "incorrect": False, "no": False}

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Answers:
    """n answers: n entries per role that the table has, `problem`, `model` and `correct` always."""

    columns: Columns
    metadata: list[dict[str, Any]]
    """What else the table says of each answer's problem, (n,)."""
    used: dict[str, str]
    """Role -> the column that was taken for it."""
    models: list[str]
    """In the order of their first appearance."""
    unused: list[str]
    """Columns that say nothing that rollouts can hold."""


def read_table(files: Sequence[Path]) -> pa.Table:
    """The rows of one or several files of equal form: parquet, JSON lines, JSON (an array) or CSV, by their suffix.

    Raises:
        DataError: one cannot be read, is of another kind, or they do not fit together.
    """
    try:
        table = pa.concat_tables([_read(file) for file in files], promote_options="permissive")
    except pa.ArrowException as error:
        raise DataError(f"the files {', '.join(map(str, files))} have columns of different types: {error}") from error
    if table.num_rows == 0:
        raise DataError(f"{', '.join(map(str, files))}: no rows")
    return table


def _read(file: Path) -> pa.Table:
    try:
        match file.suffix:
            case ".parquet":
                return pq.read_table(file)
            case ".jsonl":
                return pa.json.read_json(file)
            case ".json":
                rows = json.loads(file.read_text("utf-8"))
                if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
                    raise ValueError("an array with an object per row is needed")
                return pa.Table.from_pylist(rows)
            case ".csv":
                return pa.csv.read_csv(file, parse_options=pa.csv.ParseOptions(newlines_in_values=True))
    except (OSError, ValueError, RecursionError, pa.ArrowException) as error:
        raise DataError(f"cannot read {file} as {file.suffix[1:]}: {' '.join(str(error).split())[:300]}") from error
    raise DataError(f"{file}: its name must end in .parquet, .jsonl, .json or .csv, which say the format")


def read_answers(
    table: pa.Table, named: Mapping[str, str], models: Sequence[str] = (), threshold: float | None = None
) -> Answers:
    """
    Args:
        named: role -> column, where the user says so.
        models: a wide table's columns; none: those that hold nothing but numbers from 0 to 1.
        threshold: the least score of a right answer; None: .5, and scores beyond [0, 1] are an error.

    Raises:
        DataError: a column is missing or holds what it cannot; names both and the fix.
    """
    used = _roles(table.column_names, named)
    if "problem" not in used:
        raise DataError(_missing("problem", table))
    if "model" in used and not models:
        if "correct" not in used:
            raise DataError(_missing("correct", table))
        columns = {role: table[column].to_pylist() for role, column in used.items()}
    else:
        columns, used, models = _melted(table, used, models)
    columns["problem"] = _texts(columns["problem"], used["problem"])
    columns["model"] = _texts(columns["model"], used["model"])
    columns["correct"] = [_verdict(value, used["correct"], threshold) for value in columns["correct"]]
    for role in ("input_tokens", "output_tokens"):
        if role in columns:
            columns[role] = [_count(value, used[role]) for value in columns[role]]
    _check_ground_truth(columns, used)
    taken = {*used.values(), *models}
    left = [name for name in table.column_names if name not in taken]
    of_models = [name for name in left if any(name.startswith(f"{model}|") for model in models)]
    left = [name for name in left if name not in of_models]
    repeats = len(columns["problem"]) // table.num_rows
    metadata, unused = _metadata({name: table[name].to_pylist() * repeats for name in left}, columns["problem"])
    return Answers(columns, metadata, used, list(dict.fromkeys(columns["model"])), of_models + unused)


def _roles(names: Sequence[str], named: Mapping[str, str]) -> dict[str, str]:
    for role, column in named.items():
        if role not in ROLES:
            raise DataError(f"--column {role}={column}: there is no {role!r}; one of {', '.join(ROLES)}")
        if column not in names and column != "none":
            raise DataError(f"--column {role}={column}: no such column; the columns are {', '.join(names)}")
    lower = {name.lower(): name for name in names}
    known = {
        role: next((lower[one] for one in candidates if one in lower and lower[one] not in named.values()), None)
        for role, candidates in ROLES.items()
    }
    return {role: column for role, column in {**known, **named}.items() if column is not None and column != "none"}


def _missing(role: str, table: pa.Table) -> str:
    return (
        f"no column holds the {role}: name it with --column {role}=NAME; the columns are "
        f"{', '.join(table.column_names)} (known by themselves: {', '.join(ROLES[role])})"
    )


def _melted(table: pa.Table, used: dict[str, str], asked: Sequence[str]) -> tuple[Columns, dict[str, str], list[str]]:
    """A wide table's columns as those of a long one, model by model; its roles; its models."""
    of_problem = {role: column for role, column in used.items() if role in OF_PROBLEM}
    absent = [name for name in asked if name not in table.column_names]
    if absent:
        raise DataError(f"--models: no column {absent[0]!r}; the columns are {', '.join(table.column_names)}")
    models = list(asked) or [
        name
        for name in table.column_names
        if name not in of_problem.values() and "|" not in name and _is_share(table[name])
    ]
    if not models:
        raise DataError(
            "neither a column of models nor columns of 0 and 1, one per model: name the former with --column "
            f"model=NAME, or the latter with --models A,B; the columns are {', '.join(table.column_names)}"
        )
    columns = {role: table[column].to_pylist() * len(models) for role, column in of_problem.items()}
    if "id" not in columns:  # each row is a problem, even where texts are the same
        columns["id"] = list(range(table.num_rows)) * len(models)
        of_problem["id"] = "the row's number"
    columns["model"] = [model for model in models for _ in range(table.num_rows)]
    columns["correct"] = [value for model in models for value in table[model].to_pylist()]
    responses = {
        model: next((model + end for end in RESPONSE if model + end in table.column_names), None) for model in models
    }
    if all(responses.values()):
        columns["response"] = [text for model in models for text in table[responses[model]].to_pylist()]
    words = "the models' columns"
    return columns, {**of_problem, "model": words, "correct": words}, [*models, *filter(None, responses.values())]


def _is_share(values: pa.ChunkedArray) -> bool:
    """Whether all are numbers from 0 to 1, or missing, and not all are."""
    if not (pa.types.is_boolean(values.type) or pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        return False
    found = [value for value in values.to_pylist() if value is not None and not math.isnan(value)]
    return bool(found) and all(0 <= value <= 1 for value in found)


def _texts(values: Sequence[Any], column: str) -> list[str]:
    for number, value in enumerate(values, start=1):
        if value is None or (isinstance(value, str) and not value.strip()):
            raise DataError(f"column {column!r} is empty in row {number}: remove the row, or fill it in")
        if not isinstance(value, str | int | float):
            raise DataError(f"column {column!r} holds a {type(value).__name__} in row {number}: make it text")
    return [str(value) for value in values]


def _verdict(value: Any, column: str, threshold: float | None) -> bool | None:
    """None: there is none."""
    if isinstance(value, str):
        if value.strip().lower() in WORDS:
            return WORDS[value.strip().lower()]
        raise DataError(f"column {column!r} holds {value[:40]!r}, which says neither right nor wrong: make it 1 or 0")
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, bool | int | float) or math.isinf(value):
        raise DataError(f"column {column!r} holds {value!r}: it must be 1 or 0, or a score")
    if threshold is None and not 0 <= value <= 1:
        raise DataError(
            f"column {column!r} holds the score {value:g}: say with --threshold from which an answer is right"
        )
    return bool(value >= (0.5 if threshold is None else threshold))


def _count(value: Any, column: str) -> int | None:
    """None: there is none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise DataError(f"column {column!r} holds {str(value)[:40]!r}: it must be a number of tokens, or empty")
    return int(value)


def _check_ground_truth(columns: Columns, used: Mapping[str, str]) -> None:
    """
    Raises:
        DataError: it differs from answer to answer of one problem, so it is something else.
    """
    first: dict[str, str] = {}
    for problem, truth in zip(columns["problem"], columns.get("ground_truth", []), strict=False):
        if first.setdefault(problem, str(truth)) != str(truth):
            column = used["ground_truth"]
            raise DataError(
                f"column {column!r} differs between answers to one problem, so it is no ground truth: say what it is, "
                f"such as --column response={column}, or --column ground_truth=none"
            )


def _metadata(columns: Columns, problems: Sequence[str]) -> tuple[list[dict[str, Any]], list[str]]:
    """What the columns say of problems, and the columns that differ from answer to answer."""
    of_problem = []
    for name, values in columns.items():
        first: dict[str, Any] = {}
        if all(
            isinstance(value, str | int | float | bool | None) and first.setdefault(problem, value) == value
            for problem, value in zip(problems, values, strict=True)
        ):
            of_problem.append(name)
    metadata = [{name: columns[name][row] for name in of_problem} for row in range(len(problems))]
    return metadata, [name for name in columns if name not in of_problem]
