"""The rows of a data set, split by split: of a repository on the Hub, or of a folder of the same form.

Read by the `datasets` library, which keeps what it fetched (HF_HOME says where). Code of a repository is never run.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offline.benchmarks.base import BenchmarkError
from probes.base import ProbeError
from probes.hub import MAIN, list_files, patiently
from probes.hub_errors import LOG_IN, HubAwayError, hub_errors

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")

Cells = Mapping[str, Any]
"""One row: a value, which may be None, by column."""


@dataclass(frozen=True)
class Part:
    """A split as a data set ships it."""

    split: str
    columns: list[str]
    rows: Any
    """A list of Cells, or a `datasets.Dataset`, which reads them from disk when they are asked for."""

    def only(self, columns: Sequence[str]) -> Iterator[Cells]:
        """Every row, with these columns at least."""
        yield from self.rows if isinstance(self.rows, list) else self.rows.select_columns(list(columns))


def read_repository(dataset: str, config: str | None, revision: str | None, preferred: str | None = None) -> list[Part]:
    """
    Args:
        dataset: owner/name on the Hub, or a folder.
        config: of the repository; several, parted by commas, are read one after the other.
        preferred: the configuration where none is named, but for repositories that have a single one.

    Raises:
        BenchmarkError: there is no such repository, configuration or revision, it is not for this client, or its
            files cannot be read; names the fix.
        OSError: the Hub or the disk is away.
    """
    is_folder = Path(dataset).is_dir()
    if is_folder and revision is not None:
        raise BenchmarkError(f"{dataset} is a folder, which has no revisions: leave out --revision")
    if not is_folder and not REPOSITORY.fullmatch(dataset):
        raise BenchmarkError(f"{dataset!r} is neither a folder nor the owner/name of a data set on the Hub")
    commit = None if is_folder else _commit(dataset, revision or MAIN)
    names = config.split(",") if config else [_one_of(dataset, commit, preferred)]
    return [part for name in names for part in _parts(dataset, name, commit)]


def _commit(dataset: str, revision: str) -> str | None:
    """What the revision stands for now; None where the cache is to do, as HF_HUB_OFFLINE says."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return None
    with _from_the_hub(dataset):
        return patiently(lambda: list_files(dataset, revision, "dataset")).commit


@contextmanager
def _from_the_hub(dataset: str) -> Iterator[None]:
    try:
        yield
    except HubAwayError as error:
        raise ConnectionError(
            f"cannot read {dataset}: the Hub is away ({error}); try again later, give a local copy with --dataset "
            "FOLDER, or set HF_HUB_OFFLINE=1 to take what its cache has"
        ) from error
    except ProbeError as error:
        raise BenchmarkError(str(error)) from error


def _one_of(dataset: str, commit: str | None, preferred: str | None) -> str | None:
    """The configuration to read where none is named."""
    import datasets

    if preferred is None:
        return None
    with _said_plainly(dataset):
        names = datasets.get_dataset_config_names(dataset, revision=commit)
    return preferred if len(names) > 1 else None


def _parts(dataset: str, config: str | None, commit: str | None) -> list[Part]:
    import datasets

    with _said_plainly(dataset):
        if Path(dataset).is_dir():
            # Its cache knows a folder by its name and would not see that files in it have changed. What is open stays
            # readable after it is unlinked.
            with TemporaryDirectory(prefix="pika-") as cache:
                loaded = datasets.load_dataset(str(Path(dataset).resolve()), config, cache_dir=cache)
        else:
            loaded = datasets.load_dataset(dataset, config, revision=commit)
    return [Part(str(split), list(rows.column_names), rows) for split, rows in loaded.items()]


@contextmanager
def _said_plainly(dataset: str) -> Iterator[None]:
    """What `datasets` raises, as an error that names the fix."""
    import datasets
    from huggingface_hub import errors

    transport: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # imported there, not exported
    of_the_hub = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, transport)
    _hush()
    try:
        yield
    except ConnectionError as error:
        raise ConnectionError(f"{_line(error)}: unset HF_HUB_OFFLINE, or give a copy with --dataset FOLDER") from error
    except datasets.exceptions.DatasetNotFoundError as error:
        raise BenchmarkError(f"{_line(error)} Then {LOG_IN}") from error
    except (*of_the_hub, FileNotFoundError) as error:
        told = error if isinstance(error, of_the_hub) else error.__cause__
        if isinstance(told, of_the_hub):
            with _from_the_hub(dataset), hub_errors(dataset):
                raise told from error
        raise BenchmarkError(f"{dataset} has no files of rows (parquet, JSON lines or CSV): {_line(error)}") from error
    except ValueError as error:
        # Says which configurations there are.
        said = _line(error).partition(" Example of usage")[0]
        raise BenchmarkError(f"{dataset}: {said}; --dataset-config names one") from error
    except RuntimeError as error:
        raise BenchmarkError(f"{dataset}: {_line(error)}: name a repository that holds the rows themselves") from error
    except datasets.exceptions.DatasetsError as error:
        raise BenchmarkError(f"{dataset} cannot be read: {_line(error.__cause__ or error)}") from error


def _hush() -> None:
    """Bars on a terminal alone, and no warnings, which say nothing that an error or a note does not."""
    import datasets
    from huggingface_hub.utils.tqdm import disable_progress_bars

    datasets.logging.set_verbosity_error()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        disable_progress_bars()


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:400]
