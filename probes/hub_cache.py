"""What of a repository is in the Hub's cache, and at which commit: what is left when the Hub is away.

Files are fetched by commit, so that all of a probe's are of one. Which commit that was is kept for each path by
itself, as a name among the cache's refs: fetching one probe anew must not hide the others, which the cache has at older
commits.
"""

import logging
import re
from pathlib import Path

logger = logging.getLogger(__name__)

COMMIT = re.compile(r"[0-9a-f]{40}")


def remember(repo: str, revision: str, path: str, commit: str) -> None:
    """Keep that `path`, a file or folder, was fetched whole at this commit when `revision` was asked for."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if COMMIT.fullmatch(revision):
        return
    refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "refs"
    file = refs / _name(revision, path)
    temporary = file.with_name(f".{file.name}.{commit}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(commit)
        temporary.replace(file)
    except OSError as error:  # such as a cache that was mounted for reading alone
        logger.info("cannot write %s: %s", file, error)


def recall(repo: str, revision: str, path: str, file: str = "") -> Path | None:
    """A file in the cache, as it was when `revision` was last asked for; None: it is not there.

    Args:
        path: what was remembered.
        file: the file inside it, where it is a folder.
    """
    from huggingface_hub import try_to_load_from_cache

    name = "/".join(part for part in (path, file) if part)
    # The second is what other tools, such as `hf download`, know the revision by.
    for known in (_name(revision, path), revision):
        found = try_to_load_from_cache(repo, name, revision=known)
        if isinstance(found, str):
            return Path(found)
    return None


def commit_of(file: Path, name: str) -> str:
    """The commit in whose snapshot the cache has a file, `name` being its path in the repository."""
    return file.parents[name.count("/")].name


def _name(revision: str, path: str) -> str:
    return "pika/" + f"{revision}@{path}".replace("/", "--")
