"""Probes on the Hugging Face Hub: `hf://owner/repo/folder@revision` -> a folder of the Hub's own cache.

fetched = fetch("hf://CoffeeGitta/pika-probes/some-probe@main")
artifact = load_artifact(fetched.folder)

Where the Hub is, and with which token to ask it, is `huggingface_hub`'s business (HF_ENDPOINT, HF_TOKEN, HF_HOME, `hf
auth login`); it is imported when it is first needed.
"""

import difflib
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from probes.artifact import CONFIG, LIMITS
from probes.base import ProbeError
from probes.hub_cache import COMMIT, commit_of, recall, remember
from probes.hub_errors import HubAwayError, hub_errors
from probes.json_text import json_of

logger = logging.getLogger(__name__)

SCHEME = "hf://"
FORM = "hf://owner/repo/folder[@revision]"
MAIN = "main"
MANIFEST = "manifest.json"
FILE_LIMITS = {
    **LIMITS,
    # A folder as the research project publishes it.
    "best_probe.joblib": 64 * 2**20,
    "platt_scaler.joblib": 64 * 2**20,
    "probe_metadata.json": 4 * 2**20,
}
"""Bytes, by the names of all files that are ever fetched of a probe."""
MANIFEST_LIMIT = 16 * 2**20
TIMEOUT_S = 10.0
WAITS_S = (1.0, 3.0)
"""Before the second and third attempt, where the cache holds nothing to go on with."""

_OWNER_OR_REPO = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?")
_SEGMENT = re.compile(r"(?!\.)[A-Za-z0-9._+=,-]{1,200}")
_NOT_MODELS = ("datasets", "spaces", "buckets", "kernels")

T = TypeVar("T")


Kind = Literal["model", "dataset"]


@dataclass(frozen=True)
class Reference:
    repo: str
    """owner/name"""
    folder: str
    """Inside the repository; empty: the repository is one probe."""
    revision: str = MAIN
    """A branch, a tag or a commit."""

    def __str__(self) -> str:
        folder = f"/{self.folder}" if self.folder else ""
        return f"{SCHEME}{self.repo}{folder}@{self.revision}"


@dataclass(frozen=True)
class Fetched:
    folder: Path
    """Where the probe's files are, in the Hub's cache; not to be written to."""
    repo: str
    path: str
    """The probe's folder inside the repository."""
    commit: str
    """What the revision stood for, 40 hexadecimal digits."""
    from_cache: bool
    """The Hub was away: a branch or tag may have moved since."""


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit."""

    commit: str
    sizes: dict[str, int]
    """Bytes, by path."""
    private: bool | None = None
    """None: the Hub does not say."""
    kind: Kind = "model"
    hashes: Mapping[str, str] = field(default_factory=dict)
    """SHA-256 of large files, by path, as far as the Hub tells."""

    @property
    def probes(self) -> list[str]:
        """Folders that hold a probe."""
        return sorted(path.rpartition("/")[0] for path in self.sizes if path.rpartition("/")[2] == CONFIG)


def is_reference(text: str) -> bool:
    return text.startswith(SCHEME)


def parse(text: str) -> Reference:
    """
    Raises:
        ProbeError: it is no reference to a probe on the Hub; shows the right form.
    """
    rest, at, revision = text.removeprefix(SCHEME).partition("@")
    owner, _, rest = rest.partition("/")
    name, _, folder = rest.partition("/")
    if not is_reference(text) or not _OWNER_OR_REPO.fullmatch(owner) or not _OWNER_OR_REPO.fullmatch(name):
        raise ProbeError(f"{text!r} is no reference to a probe on the Hub: write {FORM}")
    if owner in _NOT_MODELS:
        raise ProbeError(f"{text!r}: probes live in model repositories, not in {owner}; write {FORM}")
    if folder and not all(_SEGMENT.fullmatch(segment) for segment in folder.split("/")):
        raise ProbeError(f"{text!r}: {folder!r} is no folder of a repository; write {FORM}")
    if at and not all(_SEGMENT.fullmatch(segment) and segment[0] != "-" for segment in revision.split("/")):
        raise ProbeError(f"{text!r}: {revision!r} is no branch, tag or commit; write {FORM}")
    return Reference(f"{owner}/{name}", folder, revision or MAIN)


def fetch(reference: str | Reference, keep: bool = True) -> Fetched:
    """Bring a probe's files into the Hub's cache, of one commit, and say which one.

    Files over the size limits are refused before anything is downloaded. Where the Hub is away, the cache's state of
    the revision is taken at once, with a warning.

    Args:
        keep: that commit is what the cache gives when the Hub is away; False: it is once the caller remembers it.

    Raises:
        HubAwayError: the Hub is away, and the cache lacks the probe.
        ProbeError: the reference is wrong, or the Hub refuses or does not have it; names the fix.
    """
    if isinstance(reference, str):
        reference = parse(reference)
    cached = _cached_probe(reference)
    try:
        fetched = patiently(lambda: _download(reference), cached is None)
    except HubAwayError as error:
        if cached is None:
            raise HubAwayError(
                f"cannot fetch {reference}: the Hub is away ({error}), and its cache lacks the probe; try again later, "
                "or give a local folder"
            ) from error
        logger.warning(
            "the Hub is away (%s): %s is taken from its cache, as it was at commit %s", error, reference, cached.commit
        )
        return cached
    if keep:
        remember(reference.repo, reference.revision, reference.folder, fetched.commit)
    return fetched


def list_files(repo: str, revision: str = MAIN, kind: Kind = "model") -> Listing:
    """One request, bounded in time, not repeated.

    Raises:
        HubAwayError: the Hub is away.
        ProbeError: no such repository or revision, or not for this token.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with hub_errors(repo, revision):
        info = api.repo_info(repo, repo_type=kind, revision=revision, files_metadata=True, timeout=TIMEOUT_S)
        siblings = getattr(info, "siblings", None) or ()
        sizes = {file.rfilename: file.size for file in siblings}
        hashes = {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs is not None}
        if not sizes or None in sizes.values():
            # A Hub, or a mirror of it, that does not tell sizes there.
            tree = api.list_repo_tree(repo, recursive=True, revision=info.sha, repo_type=kind)
            sizes = {file.path: file.size for file in tree if hasattr(file, "size")}
    if info.sha is None or not COMMIT.fullmatch(info.sha):
        raise HubAwayError(f"it names no commit for {repo}")
    told = {path: size for path, size in sizes.items() if size is not None}
    return Listing(info.sha, told, info.private, kind, hashes)


def read_json(repo: str, path: str, listing: Listing, limit: int = MANIFEST_LIMIT) -> Any:
    """
    Raises:
        HubAwayError: the Hub is away.
        ProbeError: it is too large, or no JSON.
    """
    return json_of(download_file(repo, path, listing, limit).read_bytes(), f"{path} of {repo}")


def download_file(repo: str, path: str, listing: Listing, limit: int) -> Path:
    """One file at the listing's commit, into the Hub's cache.

    Raises:
        HubAwayError: the Hub is away.
        ProbeError: it is larger than `limit`, in bytes, or the Hub refuses.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    _check_size(repo, path, listing.sizes[path], limit)
    kind, commit = listing.kind, listing.commit
    file = try_to_load_from_cache(repo, path, repo_type=kind, revision=commit)
    if not isinstance(file, str):
        with hub_errors(repo, commit):
            # Fails at once where the Hub has trouble; hf_hub_download would wait as long as the Hub asks it to.
            told = get_hf_file_metadata(hf_hub_url(repo, path, repo_type=kind, revision=commit), timeout=TIMEOUT_S)
        # The listing and the file may tell different sizes, and what comes may be of yet another.
        _check_size(repo, path, told.size or 0, limit)
        with hub_errors(repo, commit):
            file = hf_hub_download(repo, path, repo_type=kind, revision=commit, etag_timeout=TIMEOUT_S)
    _check_size(repo, path, Path(file).stat().st_size, limit)
    return Path(file)


def _check_size(repo: str, path: str, size: int, limit: int) -> None:
    if size > limit:
        raise ProbeError(f"{path} of {repo} has {size:,} bytes, more than the {limit:,} allowed: not taken")


def patiently(attempt: Callable[[], T], again: bool = True) -> T:
    """Once more, and once more again, where the Hub is away.

    Raises:
        HubAwayError: it stays away.
    """
    for wait_s in WAITS_S if again else ():
        try:
            return attempt()
        except HubAwayError as error:
            logger.info("the Hub is away (%s): once more in %s s", error, wait_s)
            time.sleep(wait_s)
    return attempt()


def _download(reference: Reference) -> Fetched:
    listing = list_files(reference.repo, reference.revision)
    prefix = f"{reference.folder}/" if reference.folder else ""
    names = [name for name in FILE_LIMITS if prefix + name in listing.sizes]
    if CONFIG not in names:
        raise ProbeError(_no_probe(reference, listing.probes))
    for name in names:
        _check_size(reference.repo, prefix + name, listing.sizes[prefix + name], FILE_LIMITS[name])
    files = [download_file(reference.repo, prefix + name, listing, FILE_LIMITS[name]) for name in names]
    return Fetched(files[0].parent, reference.repo, reference.folder, listing.commit, from_cache=False)


def _no_probe(reference: Reference, probes: list[str]) -> str:
    where = f"{reference.repo} at {reference.revision}"
    if not probes:
        return f"{where} holds no probe: no folder there has a {CONFIG}"
    near = difflib.get_close_matches(reference.folder, probes, n=3, cutoff=0.4) or probes[:5]
    what = f"no probe folder {reference.folder!r}" if reference.folder else "no probe at its top"
    return f"{where} has {what}: {', '.join(map(repr, near))} would be {'near' if reference.folder else 'there'}"


def _cached_probe(reference: Reference) -> Fetched | None:
    """The probe as the cache holds it, whole or not at all."""
    config = recall(reference.repo, reference.revision, reference.folder, CONFIG)
    if config is None:
        return None
    folder = config.parent
    try:
        facts = json_of(config.read_bytes(), str(config))
    except (OSError, ProbeError):
        return None
    named = facts.get("files") if isinstance(facts, dict) else None
    # Other files are never fetched.
    if not isinstance(named, list) or not all((folder / name).is_file() for name in FILE_LIMITS if name in named):
        return None
    commit = commit_of(config, f"{reference.folder}/{CONFIG}" if reference.folder else CONFIG)
    return Fetched(folder, reference.repo, reference.folder, commit, from_cache=True)
