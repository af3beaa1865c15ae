"""Where rollouts come from: a file, or a dataset on the Hub, of which a copy is kept."""

import sys
from pathlib import Path

from offline import dataset_hub
from offline.caches import cache_folder
from offline.evaluate import DataError
from offline.hub_cli import repository
from probes.base import ProbeError


def find_rollouts(text: str) -> Path:
    """A file as it is; a dataset `owner/name[@revision]` fetched once per commit, as `pika data pull` does.

    Raises:
        DataError, ProbeError: there is neither, or the dataset holds no rollouts.
        HubAwayError: the Hub is away.
    """
    file = Path(text)
    if file.exists():
        return file
    try:
        if text.endswith(".parquet"):
            raise ProbeError("a file's name")
        repo = repository(text)
    except ProbeError:
        raise DataError(f"there is no file {text}: name one, or a dataset on the Hub as owner/name") from None
    listing, layout = dataset_hub.find(repo.repo, repo.revision, None)
    folder = cache_folder("rollouts")
    kept = folder / f"{repo.repo.replace('/', '--')}@{listing.commit[:12]}.parquet"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"fetching {repo.repo} at {listing.commit[:12]}", file=sys.stderr)
        dataset_hub.pull(repo.repo, listing, layout, kept, repo.repo.partition("/")[2])
    return kept
