"""Files of problems to be labelled, and of labels: parquet, JSON lines, JSON (an array) or CSV, by their suffix."""

import csv
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from offline.evaluate import DataError, split_name
from offline.provenance import METADATA
from offline.whole_file import whole, write_whole

IDS = ("problem_id", "idx")
TEXTS = ("problem", "question")
READ = (*IDS, *TEXTS, "formatted_prompt", "split", "arm")

Columns = dict[str, list[Any]]


@dataclass(frozen=True)
class Problems:
    """n problems, each once, in their file's order."""

    id_column: str
    ids: list[Any]
    splits: list[str] | None
    """None where the file has none, or one was asked for."""
    texts: list[str] | None
    """None where only prompts are there."""
    formatted: list[str] | None
    """Prompts as a template rendered them; None where there are none."""


def suffix(file: Path) -> str:
    """
    Raises:
        DataError: a file of this name is of no kind that is read or written.
    """
    if file.suffix not in FORMATS:
        raise DataError(f"{file}: its name must end in {', '.join(FORMATS)}, which say the format")
    return file.suffix


def read_problems(file: Path, split: str | None = None, arm: str | None = None) -> Problems:
    """The problems of a file, or of one of its splits; `val` and `validation` are the same split.

    Of rollouts, which have a row per problem and arm, only the rows of `arm` are read where it has any. A problem that
    stands there several times is read once.

    Raises:
        DataError: the file cannot be read, lacks the split, ids or texts, or one id stands for two problems.
    """
    columns, names = _read(file)
    rows = _rows(columns, file, split, arm)
    id_column = next((name for name in IDS if name in columns), None)
    text_column = next((name for name in TEXTS if name in columns), None)
    if id_column is None:
        raise DataError(f"{file} has neither problem_id nor idx; its columns: {', '.join(names)}")
    if text_column is None and "formatted_prompt" not in columns:
        raise DataError(f"{file} has neither problem, question nor formatted_prompt; its columns: {', '.join(names)}")
    seen: dict[tuple[Any, Any], str] = {}
    once = []
    for row in rows:
        row_id = columns[id_column][row]
        text = columns[text_column or "formatted_prompt"][row]
        if row_id is None or row_id == "" or not isinstance(row_id, str | int):
            raise DataError(f"{file}: {id_column} of row {row + 1} is {row_id!r}: give each problem a text or number")
        if not isinstance(text, str) or not text:
            raise DataError(f"{file}: {id_column} {row_id!r} has no text in {text_column or 'formatted_prompt'}")
        formatted = columns["formatted_prompt"][row] if "formatted_prompt" in columns else ""
        if not isinstance(formatted, str):
            raise DataError(f"{file}: {id_column} {row_id!r} has no text in formatted_prompt: give all one, or none")
        split_name = columns["split"][row] if "split" in columns else None
        if not isinstance(split_name, str | int | None):
            raise DataError(f"{file}: split of row {row + 1} is {split_name!r}: name one, as a text")
        if not all(map(_is_unicode, (row_id, text, formatted, split_name))):
            raise DataError(f"{file}: {id_column} {row_id!r} holds a lone surrogate, half of a character: mend it")
        key = (columns["split"][row] if "split" in columns else None, row_id)
        if key not in seen:
            once.append(row)
        if seen.setdefault(key, text) != text:
            raise DataError(f"{file}: {id_column} {row_id!r} stands for two problems: give each its own")
    if len(once) < len(rows):
        print(f"{file}: {len(rows) - len(once)} of {len(rows)} rows repeat a problem: left out", file=sys.stderr)

    def column(name: str | None) -> list[Any] | None:
        return None if name is None or name not in columns else [columns[name][row] for row in once]

    return Problems(
        id_column,
        column(id_column) or [],
        splits=column("split") if split is None else None,
        texts=column(text_column),
        formatted=column("formatted_prompt"),
    )


def write_columns(file: Path, columns: Mapping[str, list[Any]], origin: Mapping[str, Any]) -> None:
    """Write the whole file or nothing. Where it comes from stands in parquet's metadata, else in a file beside it.

    Raises:
        OSError: it cannot be written.
    """
    with whole(file) as unfinished:
        FORMATS[suffix(file)].write(unfinished, columns, origin)
    if file.suffix != ".parquet":
        write_whole(file.with_name(f"{file.name}.provenance.json"), json.dumps(origin, indent=1) + "\n")


def _is_unicode(value: object) -> bool:
    """Whether it can be written as UTF-8, which the halves of surrogate pairs, as JSON's escapes may name, cannot."""
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def _rows(columns: Columns, file: Path, split: str | None, arm: str | None) -> list[int]:
    rows = list(range(len(next(iter(columns.values()), []))))
    if split is not None:
        splits = columns.get("split")
        if splits is None:
            raise DataError(f"{file} has no column split: leave --split out")
        rows = [row for row in rows if split_name(str(splits[row])) == split_name(split)]
        if not rows:
            raise DataError(f"{file} has no split {split!r}; it has {', '.join(sorted(set(map(str, splits))))}")
    if arm is not None and arm in columns.get("arm", ()):
        rows = [row for row in rows if columns["arm"][row] == arm]
    if not rows:
        raise DataError(f"{file} holds no problems{'' if split is None else f' in split {split!r}'}")
    return rows


def _read(file: Path) -> tuple[Columns, list[str]]:
    """The columns that are of use, and the names of all."""
    read = FORMATS[suffix(file)].read
    try:
        return read(file)
    except (OSError, ValueError, RecursionError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise DataError(f"cannot read {file} as {file.suffix[1:]}: {error}") from error


def _read_parquet(file: Path) -> tuple[Columns, list[str]]:
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(file).names
    return pyarrow.parquet.read_table(file, columns=[name for name in READ if name in names]).to_pydict(), names


def _read_jsonl(file: Path) -> tuple[Columns, list[str]]:
    with file.open(encoding="utf-8") as lines:
        return _columns([json.loads(line) for line in lines if line.strip()])


def _read_json(file: Path) -> tuple[Columns, list[str]]:
    return _columns(json.loads(file.read_text("utf-8")))


def _read_csv(file: Path) -> tuple[Columns, list[str]]:
    csv.field_size_limit(2**31 - 1)
    with file.open(newline="", encoding="utf-8-sig") as lines:
        columns, names = _columns(list(csv.DictReader(lines)))
    indices = columns.get("idx", [])
    if all(str(value).isdecimal() for value in indices):  # CSV knows text alone
        indices[:] = map(int, indices)
    return columns, names


def _columns(records: Any) -> tuple[Columns, list[str]]:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError("an object per problem is needed")
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in READ if name in names}, [str(n) for n in names]


def _write_parquet(file: Path, columns: Mapping[str, list[Any]], origin: Mapping[str, Any]) -> None:
    import pyarrow.parquet

    table = pyarrow.table(dict(columns), metadata={METADATA: json.dumps(origin).encode()})
    pyarrow.parquet.write_table(table, file)


def _write_jsonl(file: Path, columns: Mapping[str, list[Any]], _: Mapping[str, Any]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in _records(columns))
    file.write_text("".join(lines), encoding="utf-8")


def _write_json(file: Path, columns: Mapping[str, list[Any]], _: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(_records(columns), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def _write_csv(file: Path, columns: Mapping[str, list[Any]], _: Mapping[str, Any]) -> None:
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def _records(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class Format(NamedTuple):
    read: Callable[[Path], tuple[Columns, list[str]]]
    write: Callable[[Path, Mapping[str, list[Any]], Mapping[str, Any]], None]
    """The last one: where the columns come from, which parquet alone has a place for."""


FORMATS = {
    ".parquet": Format(_read_parquet, _write_parquet),
    ".jsonl": Format(_read_jsonl, _write_jsonl),
    ".json": Format(_read_json, _write_json),
    ".csv": Format(_read_csv, _write_csv),
}
