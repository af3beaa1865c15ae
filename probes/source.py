"""Where a probe model's files are: a folder on this machine, or a Hub repository at a revision."""

from pathlib import Path, PurePosixPath
from typing import Any

from probes.base import ProbeError
from probes.card import Pass
from probes.json_text import json_of, quoted


def resolve_model(reference: str, folder: Path | None = None) -> str:
    """A probe model as Transformers takes it: an absolute path where it is a folder, else a Hub id.

    Args:
        reference: Hub id, or a path.
        folder: what relative paths stand against; None: the working folder.

    Raises:
        ProbeError: it looks like a path, and nothing is there.
    """
    try:
        path = (folder or Path()) / Path(reference).expanduser()
        found = path.is_dir()
    except (OSError, RuntimeError) as error:  # too long a name, or the home of nobody
        raise ProbeError(
            f"probe model {quoted(reference)} is no path ({type(error).__name__}); give a folder or a Hub id such as "
            "owner/name"
        ) from error
    if found:
        return str(path.resolve())
    if is_path(reference):
        raise ProbeError(
            f"probe model {reference!r}: no folder at {path}; give a folder or a Hub id such as owner/name"
        )
    return reference


def is_path(reference: str) -> bool:
    """Whether a reference to a model can be no Hub id."""
    return reference.startswith((".", "/", "~")) or reference.count("/") != 1


def short_name(reference: str) -> str:
    """The last component of a path or Hub id: enough to name the model by where it is put in another's place."""
    return PurePosixPath(reference).name or reference


def model_file(pass_: Pass, name: str) -> Path:
    """The path of one file of the probe model, fetched from the Hub where it is not local.

    Raises:
        ProbeError: the model has no such file, or the Hub cannot be reached and its cache lacks it.
    """
    file = optional_model_file(pass_, name)
    if file is None:
        raise ProbeError(f"{pass_.probe_model} has no {name}: give a whole model, tokenizer included")
    return file


def optional_model_file(pass_: Pass, name: str) -> Path | None:
    """The same for a file that not every model has; None where this one has none."""
    folder = Path(pass_.probe_model)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None

    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(pass_.probe_model, name, revision=pass_.revision))
    except LocalEntryNotFoundError as error:  # the Hub could not be asked
        if try_to_load_from_cache(pass_.probe_model, name, revision=pass_.revision) is _CACHED_NO_EXIST:
            return None
        raise ProbeError(
            f"cannot fetch {name} of {pass_.probe_model} and the cache has none: check the network and HF_TOKEN, "
            "or download the model and give its folder"
        ) from error
    except EntryNotFoundError:
        return None
    except (OSError, HFValidationError) as error:
        said = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ProbeError(
            f"cannot read {pass_.probe_model} at revision {pass_.revision or 'main'}: {said}; check name and revision, "
            "log in with `hf auth login` where it is private, or give the folder where you have it: "
            f"engine.probe_models: {{{short_name(pass_.probe_model)}: FOLDER}}, or --probe-model FOLDER"
        ) from error


def read_json(file: Path | None) -> dict[str, Any]:
    """A JSON object; empty where there is no file.

    Raises:
        ProbeError: the file is no JSON object.
    """
    if file is None:
        return {}
    try:
        data = json_of(file.read_bytes(), str(file))
    except OSError as error:
        raise ProbeError(f"cannot read {file}: {error}") from error
    if not isinstance(data, dict):
        raise ProbeError(f"{file} must hold a JSON object")
    return data
