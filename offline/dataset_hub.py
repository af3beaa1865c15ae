"""Rollouts to and from a dataset repository on the Hub."""

import difflib
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from offline.evaluate import DataError, split_name
from offline.foreign_rollouts import our_row
from offline.hub_push import ATTEMPTS, README_LIMIT, WRITE_TIMEOUT_S
from offline.provenance import METADATA, noted
from offline.rollout_dataset import README, DataFile, Layout, locate, readme, sampled_arms
from offline.rollout_store import REQUIRED, SCHEMA, conform
from offline.whole_file import whole
from probes.hub import Listing, download_file, list_files, patiently
from probes.hub_errors import HubConflictError, HubMissingError, hub_errors

logger = logging.getLogger(__name__)

MAX_BYTES = 16 * 2**30
"""Of all files that one `pull` fetches."""
BATCH_ROWS = 500


@dataclass(frozen=True)
class Pulled:
    commit: str
    rows: dict[str, dict[str, int]]
    """By configuration and split."""


def find(repo: str, revision: str, config: str | None) -> tuple[Listing, Layout]:
    """What a dataset repository has, and where.

    Raises:
        HubAwayError: the Hub is away.
        ProbeError, DataError: there is no such repository, revision or configuration, or it is too large.
    """
    listing = patiently(lambda: list_files(repo, revision, "dataset"))
    layout = locate(_readme(repo, listing) or "", listing.sizes)
    if not layout:
        raise DataError(f"{repo} has no parquet files that a card or their names tell the splits of")
    if config is not None:
        if config not in layout:
            near = difflib.get_close_matches(config, layout, n=3, cutoff=0.3) or list(layout)[:10]
            raise DataError(f"{repo} has no configuration {config!r}; it has {', '.join(near)}")
        layout = {config: layout[config]}
    size = sum(listing.sizes[path] for splits in layout.values() for paths in splits.values() for path in paths)
    if size > MAX_BYTES:
        raise DataError(f"{repo} has {size / 2**30:.0f} GiB, more than {MAX_BYTES // 2**30}: name one --config")
    return listing, layout


def pull(
    repo: str, listing: Listing, layout: Layout, out: Path, benchmark: str, on_file: Callable[[], None] = lambda: None
) -> Pulled:
    """Fetch and write one parquet file of rollouts, whole or not at all.

    Args:
        benchmark: what rows that name none were sampled on.
        on_file: called when a file has been read, for progress bars.

    Raises:
        HubAwayError: the Hub is away.
        ProbeError, DataError: a file is refused, or holds no rollouts.
    """
    paths = [path for splits in layout.values() for paths in splits.values() for path in paths]
    local = {path: _fetched(repo, path, listing, MAX_BYTES) for path in paths}
    rows: dict[str, dict[str, int]] = {}
    seen: set[tuple[str, str, str]] = set()
    metadata = _metadata(repo, listing, layout, [_schema(file, path) for path, file in local.items()])
    schema = SCHEMA.with_metadata(metadata)
    with whole(out) as unfinished, pq.ParquetWriter(unfinished, schema, compression="zstd") as writer:
        for config, splits in layout.items():
            for split, paths in splits.items():
                named = split_name(split)
                for path in paths:
                    for table in _tables(local[path], path, config, named, benchmark, seen):
                        writer.write_table(table.replace_schema_metadata(schema.metadata))
                        counts = rows.setdefault(config, {})
                        counts[named] = counts.get(named, 0) + table.num_rows
                    on_file()
    return Pulled(listing.commit, rows)


def _tables(
    file: Path, path: str, config: str, split: str, benchmark: str, seen: set[tuple[str, str, str]]
) -> Iterator[pa.Table]:
    try:
        opened = pq.ParquetFile(file)
        ours = set(REQUIRED) <= set(opened.schema_arrow.names)
        for batch in opened.iter_batches(BATCH_ROWS):
            if ours:
                yield conform(pa.Table.from_batches([batch]))
                continue
            fresh = []
            for row in (our_row(row, config, split, benchmark) for row in batch.to_pylist()):
                key = (row["arm"], row["split"], row["problem_id"])
                if key not in seen:  # some benchmarks repeat a problem
                    fresh.append(row)
                seen.add(key)
            yield pa.Table.from_pylist(fresh, schema=SCHEMA)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as rollouts: {' '.join(str(error).split())[:300]}") from error


def _schema(file: Path, path: str) -> pa.Schema:
    try:
        return pq.read_schema(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no parquet file: {error}") from error


def _metadata(repo: str, listing: Listing, layout: Layout, schemas: Sequence[pa.Schema]) -> dict[bytes, bytes]:
    """Where the rows come from, and what they say of themselves; of how they were sampled nothing, where not all that
    were sampled together are there: `pika rollouts` would take the file for its whole run."""
    metadata = {b"pika_source": f"hf://datasets/{repo}@{listing.commit}".encode()}
    said = [noted(schema.metadata) for schema in schemas]
    if len(sampled_arms(schemas[0])) != len(layout):
        said = [{name: value for name, value in one.items() if name != "settings"} for one in said]
    if said[0] and all(one == said[0] for one in said):
        metadata[METADATA] = json.dumps(said[0], ensure_ascii=False).encode()
    return metadata


@dataclass(frozen=True)
class Push:
    """What one push would change, or did."""

    listing: Listing
    files: dict[str, str] = field(default_factory=dict)
    """added, changed, removed or unchanged, by path."""
    readme: tuple[str | None, str] = (None, "")
    """Before, after."""
    commit: str | None = None

    @property
    def changed(self) -> bool:
        return any(kind != "unchanged" for kind in self.files.values())


def plan(repo: str, files: Sequence[DataFile], overwrite: bool) -> Push:
    """
    Raises:
        HubAwayError: the Hub is away.
        ProbeError, DataError: other rows stand there and are not to be overwritten, or the card cannot be read.
    """
    try:
        listing = patiently(lambda: list_files(repo, kind="dataset"))
    except HubMissingError:
        listing = Listing("", {}, kind="dataset")
    before = _readme(repo, listing)
    there = locate(before or "", listing.sizes)
    kinds = {file.path: _kind(file, listing) for file in files}
    for file in files:
        for path in there.get(file.config, {}).get(file.split, []):
            if path not in kinds:
                kinds[path] = "removed"
    others = [path for path, kind in kinds.items() if kind in ("changed", "removed")]
    if others and not overwrite:
        raise DataError(f"{repo} has other rows in {', '.join(others[:5])}: --overwrite replaces them")
    after = readme(files, repo, before)
    kinds[README] = "added" if before is None else "unchanged" if before == after else "changed"
    return Push(listing, kinds, (before, after))


def push(repo: str, files: Sequence[DataFile], *, overwrite: bool, public: bool, message: str) -> Push:
    """Publish files of rollouts and the card in one commit; a repository that does not exist is made.

    Raises:
        HubAwayError: the Hub is away; all of it was committed, or nothing.
        ProbeError, DataError: see `plan`; or the Hub refuses.
    """
    from huggingface_hub import HfApi, get_session

    get_session().timeout = WRITE_TIMEOUT_S
    for _ in range(ATTEMPTS):
        todo = plan(repo, files, overwrite)
        if not todo.listing.commit:
            with hub_errors(repo):
                HfApi().create_repo(repo, repo_type="dataset", private=not public, exist_ok=True)
            todo = plan(repo, files, overwrite)
        try:
            return _commit(repo, todo, files, message) if todo.changed else todo
        except HubConflictError as error:
            logger.info("%s: planning anew", error)
    raise DataError(f"{repo} changed {ATTEMPTS} times before the rows were committed: try again when it is quiet")


def _commit(repo: str, todo: Push, files: Sequence[DataFile], message: str) -> Push:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    contents: dict[str, str | bytes] = {file.path: str(file.local) for file in files}
    contents[README] = todo.readme[1].encode()
    operations: list[Any] = [
        CommitOperationDelete(path) if kind == "removed" else CommitOperationAdd(path, contents[path])
        for path, kind in todo.files.items()
        if kind != "unchanged"
    ]
    with hub_errors(repo):
        info = HfApi().create_commit(
            repo, operations, repo_type="dataset", commit_message=message, parent_commit=todo.listing.commit
        )
    return replace(todo, commit=info.oid)


def _kind(file: DataFile, listing: Listing) -> str:
    if file.path not in listing.sizes:
        return "added"
    with file.local.open("rb") as opened:
        same = hashlib.file_digest(opened, "sha256").hexdigest() == listing.hashes.get(file.path)
    return "unchanged" if same else "changed"


def _readme(repo: str, listing: Listing) -> str | None:
    if README not in listing.sizes:
        return None
    file = _fetched(repo, README, listing, README_LIMIT)
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{README} of {repo} is not UTF-8: mend it there") from error


def _fetched(repo: str, path: str, listing: Listing, limit: int) -> Path:
    return patiently(lambda: download_file(repo, path, listing, limit))
