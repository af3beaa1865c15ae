"""Publishing a probe: its files, the manifest and the cards in one commit that no other one slips under."""

import difflib
import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from offline.model_card import PLOT, README, plot, probe_readme, repository_readme
from probes.artifact import CONFIG, WEIGHTS, Artifact
from probes.base import ProbeError
from probes.hub import FILE_LIMITS, MANIFEST, MANIFEST_LIMIT, Listing, Reference, download_file, list_files, patiently
from probes.hub_errors import HubConflictError, HubMissingError, hub_errors
from probes.json_text import json_of
from probes.manifest import entries_of, entry_of, unlisted

logger = logging.getLogger(__name__)

ATTEMPTS = 5
README_LIMIT = 2 * 2**20
WRITE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Change:
    path: str
    before: bytes | None
    """None: the file is new."""
    after: bytes | None
    """None: it goes."""

    @property
    def kind(self) -> Literal["added", "changed", "removed", "unchanged"]:
        if self.before is None:
            return "added"
        if self.after is None:
            return "removed"
        return "unchanged" if self.before == self.after else "changed"

    def diff(self) -> Iterator[str]:
        """Unified, of texts."""
        before, after = (
            (content or b"").decode(errors="replace").splitlines() for content in (self.before, self.after)
        )
        return difflib.unified_diff(before, after, self.path, self.path, lineterm="")


@dataclass(frozen=True)
class Plan:
    """What one push would change."""

    reference: Reference
    changes: tuple[Change, ...]
    parent: str | None
    """The commit that it goes upon; None: there is no repository yet."""
    private: bool | None = None
    """Of the repository there is; None: there is none, or the Hub does not say."""
    commit: str | None = None
    """What it became."""

    @property
    def changed(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.kind != "unchanged")


def plan(artifact: Artifact, repo: str, name: str, overwrite: bool = False) -> Plan:
    """What publishing an artifact as `repo/name` changes there.

    Raises:
        HubAwayError: the Hub is away.
        ProbeError: another probe stands there and is not to be overwritten, or the repository's files cannot be read.
    """
    reference = Reference(repo, name)
    try:
        listing = patiently(lambda: list_files(repo))
    except HubMissingError:
        listing = Listing("", {})
    files = _files(artifact, str(reference).partition("@")[0])
    changes = [Change(f"{name}/{file}", _before(repo, listing, f"{name}/{file}"), files[file]) for file in files]
    gone = [f"{name}/{file}" for file in FILE_LIMITS if f"{name}/{file}" in listing.sizes and file not in files]
    changes += [Change(path, _before(repo, listing, path), None) for path in gone]
    _refuse_another(reference, changes, overwrite)

    manifest = _before(repo, listing, MANIFEST)
    listed = _manifest(repo, name, artifact, manifest, listing)
    readme = _before(repo, listing, README)
    entries = entries_of(listed, MANIFEST)
    changes += [
        Change(MANIFEST, manifest, _dumped(listed)),
        Change(README, readme, repository_readme(entries, repo, _text(repo, readme)).encode()),
    ]
    return Plan(reference, tuple(changes), listing.commit or None, listing.private)


def push(
    artifact: Artifact, repo: str, name: str, *, overwrite: bool = False, public: bool = False, message: str = ""
) -> Plan:
    """Publish an artifact as `repo/name`: one commit, upon the state of the repository that it was planned for.

    A repository that does not exist is made, private unless `public`.

    Raises:
        HubAwayError: the Hub is away; all of it was committed, or nothing.
        ProbeError: see `plan`; or the Hub refuses.
    """
    from huggingface_hub import HfApi, get_session

    get_session().timeout = WRITE_TIMEOUT_S
    for _ in range(ATTEMPTS):
        todo = plan(artifact, repo, name, overwrite)
        if todo.parent is None:
            with hub_errors(repo):
                HfApi().create_repo(repo, private=not public, exist_ok=True)
            todo = plan(artifact, repo, name, overwrite)
        try:
            return _commit(todo, message or f"Probe {name}") if todo.changed else todo
        except HubConflictError as error:
            logger.info("%s: planning anew", error)
    raise ProbeError(f"{repo} changed {ATTEMPTS} times before the probe was committed: try again when it is quiet")


def _commit(todo: Plan, message: str) -> Plan:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    operations = [
        CommitOperationDelete(change.path) if change.after is None else CommitOperationAdd(change.path, change.after)
        for change in todo.changed
    ]
    repo = todo.reference.repo
    with hub_errors(repo):
        info = HfApi().create_commit(repo, operations, commit_message=message, parent_commit=todo.parent)
    return replace(todo, commit=info.oid)


def _files(artifact: Artifact, reference: str) -> dict[str, bytes]:
    """What the probe's folder will hold."""
    names = (CONFIG, WEIGHTS, *(file for file in artifact.card.files if file not in (CONFIG, WEIGHTS)))
    files = {name: (artifact.folder / name).read_bytes() for name in names}
    files[README] = probe_readme(artifact.card, reference, artifact.revision).encode()
    picture = plot(artifact.card)
    if picture is not None:
        files[PLOT] = picture.encode()
    return files


def _before(repo: str, listing: Listing, path: str) -> bytes | None:
    if path not in listing.sizes:
        return None
    limit = {MANIFEST: MANIFEST_LIMIT, README: README_LIMIT}.get(path, FILE_LIMITS.get(Path(path).name, README_LIMIT))
    return patiently(lambda: download_file(repo, path, listing, limit)).read_bytes()


def _refuse_another(reference: Reference, changes: list[Change], overwrite: bool) -> None:
    own = [change for change in changes if Path(change.path).name in FILE_LIMITS]
    config = next(change for change in own if change.path.endswith(CONFIG))
    if overwrite or config.before is None or all(change.kind == "unchanged" for change in own):
        return
    try:
        before, after = (json_of(content or b"", config.path) for content in (config.before, config.after))
        differs = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    except (ProbeError, TypeError, AttributeError):
        differs = []
    what = f"they differ in {', '.join(differs[:6])}" if differs else "their weights differ"
    raise ProbeError(
        f"another probe stands at {reference} ({what}): --overwrite replaces it (its commits stay), --name keeps both"
    )


def _text(repo: str, readme: bytes | None) -> str | None:
    try:
        return None if readme is None else readme.decode()
    except UnicodeDecodeError as error:
        raise ProbeError(f"{README} of {repo} is no UTF-8 text: {error}; mend or remove it there") from error


def _manifest(repo: str, name: str, artifact: Artifact, before: bytes | None, listing: Listing) -> dict[str, Any]:
    """The manifest with this probe in it, and with every other folder that has one."""
    manifest: dict[str, Any] = {"version": "1.0"}
    if before is not None:
        manifest = json_of(before, f"{MANIFEST} of {repo}", "mend or remove it there")
        entries_of(manifest, f"{MANIFEST} of {repo}")
    own = _entry(name, artifact)
    probes = [entry for entry in manifest.get("probes", []) if entry["name"] in listing.probes or entry["name"] == name]
    known = {entry["name"] for entry in probes}
    probes += unlisted(repo, listing, [folder for folder in listing.probes if folder not in known and folder != name])
    probes = [own if entry["name"] == name else entry for entry in probes]
    if name not in known:
        probes.append(own)
    if before is None or probes != manifest.get("probes"):
        manifest["generated_at"] = datetime.now(UTC).isoformat(timespec="seconds")
    return {**manifest, "num_probes": len(probes), "probes": probes}


def _entry(name: str, artifact: Artifact) -> dict[str, Any]:
    card = artifact.card
    return entry_of(name, card.model_dump(mode="json")) | {
        "kind": card.kind,
        "arm": card.target.arm,
        "revision": artifact.revision,
        "schema_version": card.schema_version,
    }


def _dumped(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2, ensure_ascii=False) + "\n").encode()
