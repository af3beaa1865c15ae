"""`manifest.json`: the probes of a Hub repository, in the research project's format with what we add to each entry."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from probes.artifact import CONFIG
from probes.base import ProbeError
from probes.hub import (
    FILE_LIMITS,
    MAIN,
    MANIFEST,
    MANIFEST_LIMIT,
    Listing,
    download_file,
    list_files,
    patiently,
    read_json,
)
from probes.hub_cache import commit_of, recall, remember
from probes.hub_errors import HubAwayError
from probes.json_text import json_of

logger = logging.getLogger(__name__)

MAX_UNLISTED = 500
"""Folders that are read one by one where there is no manifest."""


class Entry(BaseModel):
    """One probe."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    name: str
    """Its folder in the repository."""
    model: str = ""
    dataset: str = ""
    probe_type: str = ""
    label_type: str = ""
    kind: str | None = None
    arm: str | None = None
    revision: str | None = None
    """Short hash of the artifact's files, as in `Artifact.revision`."""
    schema_version: int | None = None


@dataclass(frozen=True)
class Probes:
    """The probes of a repository."""

    commit: str
    entries: tuple[Entry, ...]
    from_cache: bool = False
    """The Hub was away."""


def list_probes(repo: str, revision: str = MAIN) -> Probes:
    """By the manifest; where there is none, by the folders that have a `config.json`.

    Raises:
        HubAwayError: the Hub is away, and the cache has no manifest.
        ProbeError: no such repository or revision, or its manifest cannot be read.
    """
    cached = _cached(repo, revision)
    try:
        return patiently(lambda: _list(repo, revision), cached is None)
    except HubAwayError as error:
        if cached is None:
            raise HubAwayError(
                f"cannot list {repo}: the Hub is away ({error}), and its cache has no manifest of it; try again later"
            ) from error
        logger.warning("the Hub is away (%s): the list is its cache's, at commit %s", error, cached.commit)
        return cached


def entries_of(manifest: object, where: str) -> tuple[Entry, ...]:
    """
    Raises:
        ProbeError: it is not in the manifest's format.
    """
    probes = manifest.get("probes") if isinstance(manifest, dict) else None
    if not isinstance(probes, list):
        raise ProbeError(f"{where} is no manifest of probes: it must hold an object with a list `probes`")
    try:
        return tuple(Entry.model_validate(probe) for probe in probes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ProbeError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def entry_of(name: str, config: object) -> dict[str, Any]:
    """A probe's entry by its `config.json`, ours or the research project's."""
    facts = config if isinstance(config, dict) else {}
    entry = {
        "name": name,
        "model": facts.get("model_name"),
        "dataset": facts.get("dataset"),
        "probe_type": facts.get("probe_type"),
        "label_type": facts.get("label_type"),
    }
    return {key: value for key, value in entry.items() if isinstance(value, str)}


def _list(repo: str, revision: str) -> Probes:
    listing = list_files(repo, revision)
    if MANIFEST in listing.sizes:
        manifest = read_json(repo, MANIFEST, listing, MANIFEST_LIMIT)
        entries = entries_of(manifest, f"{MANIFEST} of {repo}")
        remember(repo, revision, MANIFEST, listing.commit)
        return Probes(listing.commit, entries)
    return Probes(listing.commit, entries_of({"probes": unlisted(repo, listing, listing.probes)}, repo))


def unlisted(repo: str, listing: Listing, folders: list[str]) -> list[dict[str, Any]]:
    """Entries of folders by what their `config.json` says.

    Raises:
        ProbeError: they are too many, or one cannot be read.
    """
    if len(folders) > MAX_UNLISTED:
        raise ProbeError(
            f"{repo} has {len(folders)} probe folders and no {MANIFEST} that names them: publish one there"
        )
    entries = []
    for folder in folders:
        path = f"{folder}/{CONFIG}" if folder else CONFIG
        config = _config_of(download_file(repo, path, listing, FILE_LIMITS[CONFIG]))
        if config is None or is_probe(config):
            entries.append(entry_of(folder, config))
    return entries


def is_probe(config: object) -> bool:
    """Whether a `config.json` is a probe's; language models have one too."""
    return isinstance(config, dict) and "probe_type" in config


def _config_of(file: Path) -> object:
    try:
        return json_of(file.read_bytes(), str(file))
    except ProbeError:
        return None  # a folder whose configuration is damaged is listed by its name alone


def _cached(repo: str, revision: str) -> Probes | None:
    file = recall(repo, revision, MANIFEST)
    if file is None:
        return None
    try:
        entries = entries_of(json_of(file.read_bytes(), str(file)), str(file))
    except (OSError, ProbeError):
        return None
    return Probes(commit_of(file, MANIFEST), entries, from_cache=True)
