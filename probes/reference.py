"""A probe by its reference: a folder of ours or of the research project's, or `hf://owner/repo/folder[@revision]`."""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from probes.artifact import Artifact, load_artifact
from probes.card import Dtype
from probes.hub import Reference, fetch, is_reference, parse
from probes.hub_cache import remember
from probes.legacy import is_legacy, load_legacy
from probes.prompt import Renderer


def load_probe(
    reference: str | os.PathLike[str],
    *,
    allow: Collection[str] = (),
    probe_model: str | None = None,
    probe_models: Mapping[str, str] | None = None,
    dtype: Dtype | None = None,
    verify: bool = True,
    renderers: list[Renderer] | None = None,
) -> Artifact:
    """A probe, checked; from the Hub it is fetched into the Hub's cache, and read from there where the Hub is away.

    What fails a check is not what the cache gives then: it stays with what passed before. Takes what
    `probes.artifact.load_artifact` takes; a path on the card of a probe from the Hub leads nowhere.

    Args:
        probe_model: a folder or Hub id in place of the one that the card names, whatever that is.

    Raises:
        ProbeError: it cannot be fetched, or does not pass the checks; names what and the fix.
    """
    asked = parse(str(reference)) if is_reference(str(reference)) else None
    fetched = None if asked is None else fetch(asked, keep=False)
    folder = Path(reference) if fetched is None else fetched.folder
    load = load_legacy if is_legacy(folder) else load_artifact
    if probe_model is not None:
        named = load(folder, verify=False, foreign=fetched is not None).card.pass_
        probe_models = {} if named is None else {named.probe_model: probe_model}
    artifact = load(
        folder,
        allow=allow,
        probe_models=probe_models,
        dtype=dtype,
        verify=verify,
        renderers=renderers,
        foreign=fetched is not None,
    )
    if asked is None or fetched is None:
        return artifact
    remember(asked.repo, asked.revision, asked.folder, fetched.commit)
    source = str(Reference(fetched.repo, fetched.path, fetched.commit))
    return replace(artifact, revision=fetched.commit, source=source, from_cache=fetched.from_cache)
