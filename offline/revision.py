"""Where a new revision of a probe goes, and what of its card depends on that."""

import os
from pathlib import Path

from probes.artifact import WEIGHTS, Artifact
from probes.base import ProbeError
from probes.card import Pass
from probes.source import is_path


def revision_folder(reference: str, out: Path | None, artifact: Artifact) -> Path:
    """`out` if it is given, else the probe's own folder.

    Raises:
        ProbeError: the probe is in no folder that can be written anew.
    """
    if out is not None:
        return out
    if artifact.source.startswith("hf://") or not (artifact.folder / WEIGHTS).is_file():
        raise ProbeError(f"{reference} is not a folder that can be written anew: say --out FOLDER")
    return artifact.folder


def pass_from(artifact: Artifact, out: Path) -> Pass | None:
    """The card's pass, its probe model's path as it is from `out`, or where the model was found here."""
    pass_, served = artifact.card.pass_, artifact.pass_
    if pass_ is None or served is None:
        return pass_
    named, found = artifact.folder / pass_.probe_model, Path(served.probe_model)
    stays = Path(pass_.probe_model).is_absolute() and named.resolve() == found
    if stays or not found.is_dir() or not (named.is_dir() or is_path(pass_.probe_model)):
        return pass_
    relative = os.path.relpath(found, out.resolve())
    return pass_.model_copy(update={"probe_model": Path(relative).as_posix()})
