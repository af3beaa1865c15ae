"""Where rollouts are kept: a journal while a run is on, one parquet file when it is done.

The journal (`<out>.partial`) holds the run's settings on its first line and one sample on each further line. A line
that a crash tore is dropped.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from offline.provenance import METADATA
from offline.samplers import Key, Sample
from offline.whole_file import whole
from server.sections.pool import Prices

SCHEMA = pa.schema(
    [
        ("problem_id", pa.string()),
        ("split", pa.string()),
        ("benchmark", pa.string()),
        ("problem", pa.string()),
        ("formatted_prompt", pa.string()),
        ("ground_truth", pa.string()),
        ("arm", pa.string()),
        ("model", pa.string()),
        ("k", pa.int32()),
        ("temperature", pa.float64()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
        ("generated_solutions", pa.list_(pa.string())),
        ("extracted_answers", pa.list_(pa.string())),
        ("correct", pa.list_(pa.bool_())),
        ("success_rate", pa.float64()),
        ("pass_at_k", pa.float64()),
        ("majority_vote_answer", pa.string()),
        ("majority_vote_is_correct", pa.bool_()),
        ("input_tokens", pa.int32()),
        ("output_tokens", pa.list_(pa.int32())),
        ("input_cost_usd_once", pa.float64()),
        ("total_output_cost_usd", pa.float64()),
        ("total_cost_usd", pa.float64()),
        ("truncated", pa.list_(pa.bool_())),
        ("metadata", pa.string()),
    ]
)
"""One row per (arm, split, problem_id). Lists have k entries; costs are of all k answers, the input's once.

`truncated` tells which answers max_tokens, or the context's end, cut off. `metadata` is a JSON object of what else is
known of the problem, such as its level; null where that is nothing.
"""

OPTIONAL = ("truncated", "metadata")
"""Null in rollouts from elsewhere; files written before there were these columns lack them."""
REQUIRED = tuple(name for name in SCHEMA.names if name not in OPTIONAL)
"""The columns without which a file holds no rollouts."""

SYNC_S = 1.0

Settings = Mapping[str, Any]
"""What decides the rows; a run goes on, and a file counts as done, only under equal settings."""


class StoreError(Exception):
    """The files at hand are not this run's, damaged, or in use; the message names the fix."""


class WriteError(OSError):
    """The disk takes no more; what is on it stays whole."""


class Journal:
    """The samples of an unfinished run. A context manager; one process at a time."""

    def __init__(self, out: Path, settings: Settings) -> None:
        """Open the journal of `out`, or begin it.

        Raises:
            StoreError: it was begun with other settings, is damaged, or another run is writing it.
            WriteError: the disk is full.
        """
        self.path = journal_path(out)
        self.samples: dict[Key, Sample] = {}
        self._synced = time.monotonic()
        try:
            self._file: IO[bytes] = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise StoreError(f"cannot write {self.path}: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._restore(settings)
        except BlockingIOError:
            self._file.close()
            raise StoreError(f"another run is writing {self.path}: wait for it, or give another --out") from None
        except (StoreError, WriteError):
            self._file.close()
            raise

    def _restore(self, settings: Settings) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        torn = lines.pop()  # what follows the last line's end: empty, unless the run was killed while it wrote
        self._file.truncate(self._file.tell() - len(torn))
        if not lines:
            self._write({"settings": settings})
            self._sync()
            return
        try:
            begun, *samples = [json.loads(line) for line in lines]
            same_settings(begun["settings"], settings, self.path)
            self.samples = {sample.key: sample for sample in (Sample(**fields) for fields in samples)}
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(f"{self.path} is damaged ({error}): delete it to start anew") from error

    def add(self, sample: Sample) -> None:
        """
        Raises:
            WriteError: the disk is full; the sample is not kept.
        """
        if sample.key in self.samples:
            raise ValueError(f"{sample.key} was sampled twice")
        self._write(asdict(sample))
        self.samples[sample.key] = sample

    def _write(self, line: Mapping[str, Any]) -> None:
        left = json.dumps(line).encode() + b"\n"
        try:
            # The system has the line even if this process is killed now; the disk has it within SYNC_S of work.
            while left:
                left = left[self._file.write(left) :]
            if time.monotonic() - self._synced > SYNC_S:
                self._sync()
        except OSError as error:
            raise _full(self.path, error) from error

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._sync()
        self._file.close()

    def remove(self) -> None:
        self.path.unlink()


def _full(path: Path, error: OSError) -> WriteError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return WriteError(f"cannot write {path}: {reason}; make room on its disk")


def journal_path(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def same_settings(found: Any, asked: Settings, path: Path) -> None:
    """
    Raises:
        StoreError: they differ; names each difference.
    """
    found, wanted = _flatten(found), _flatten(json.loads(json.dumps(asked)))
    names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if names:
        differences = "\n".join(f"  {name}: {found.get(name)} there, {wanted.get(name)} asked" for name in names)
        raise StoreError(
            f"{path} was made with other settings:\n{differences}\ngive the same ones, or another --out, or delete it"
        )


def _flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(settings, dict):
        return {prefix.rstrip("."): settings}
    return {key: value for name in settings for key, value in _flatten(settings[name], f"{prefix}{name}.").items()}


def to_table(rows: list[dict[str, Any]], provenance: Mapping[str, Any]) -> pa.Table:
    metadata = {METADATA: json.dumps(provenance, ensure_ascii=False).encode()}
    return pa.Table.from_pylist(rows, schema=SCHEMA).replace_schema_metadata(metadata)


def costs(prices: Prices, input_tokens: int, output_tokens: Sequence[int]) -> dict[str, float]:
    """The columns of what k answers cost, the prompt once."""
    input_usd = input_tokens * prices.input / 1e6
    output_usd = sum(output_tokens) * prices.output / 1e6
    return {
        "input_cost_usd_once": input_usd,
        "total_output_cost_usd": output_usd,
        "total_cost_usd": input_usd + output_usd,
    }


def conform(table: pa.Table) -> pa.Table:
    """The columns of the schema alone, those that the table may lack as nulls."""
    there = {name: table[name] if name in table.column_names else pa.nulls(len(table)) for name in SCHEMA.names}
    return pa.table(there).cast(SCHEMA).replace_schema_metadata(table.schema.metadata)


def write(out: Path, table: pa.Table) -> None:
    """Write the whole file or nothing.

    Raises:
        WriteError: the disk is full.
    """
    try:
        with whole(out) as unfinished:
            pq.write_table(table, unfinished, compression="zstd", compression_level=9)
    except OSError as error:
        raise _full(out, error) from error


def read(out: Path, settings: Settings) -> pa.Table | None:
    """The finished rollouts, or None where there is no file.

    Raises:
        StoreError: a file is there, but these are not its settings.
    """
    if not out.exists():
        return None
    try:
        table = pq.read_table(out)
        found = json.loads((table.schema.metadata or {})[METADATA])["settings"]
    except (OSError, pa.ArrowInvalid, ValueError, KeyError) as error:
        raise StoreError(f"{out} is there and was not written by `pika rollouts`: give another --out") from error
    same_settings(found, settings, out)
    return conform(table)
