"""A probe as a folder: `config.json` (the card) and `probe.safetensors` (the weights). Never a pickle.

artifact = load_artifact("probes/nano-small")
artifact.probe.raw(inputs)
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from probes import output_tokens, statistics
from probes.base import Probe, ProbeError, load
from probes.card import Check, Dtype, Pass, ProbeCard
from probes.checks import check_all, check_names, warn_of_unverified
from probes.json_text import MOST, json_of, problems, quoted
from probes.prompt import Renderer
from probes.source import is_path, resolve_model, short_name

CONFIG = "config.json"
WEIGHTS = "probe.safetensors"
VOCABULARY = "vocabulary.json"
LIMITS = {CONFIG: 4 * 2**20, WEIGHTS: 256 * 2**20, VOCABULARY: 16 * 2**20}
"""Bytes. A head is a few kilobytes; what is larger than this is something else."""
RETRAIN = "make it anew with `pika train`"

Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Artifact:
    folder: Path
    card: ProbeCard
    probe: Probe
    revision: str
    """Short hash of the artifact's files: names these very weights in headers and metrics."""
    pass_: Pass | None
    """The card's pass as it runs here, its probe model an absolute folder or a Hub id; None: no probe model is read."""
    beside: Tensors = field(default_factory=dict)
    """Tensors of the output-token head and the activation statistics."""
    mismatches: tuple[Check, ...] = ()
    """Overridden checks that failed."""
    source: str = ""
    """Where it came from: a path, or `hf://owner/repo/folder@commit`."""
    from_cache: bool = False
    """Whether the Hub could not be asked, so that its cache's copy was taken."""

    @property
    def predictions_sha256(self) -> str:
        """Hash of all that decisions rest on; the rest, such as the date and the metrics, changes none."""
        tensors = {name: np.ascontiguousarray(value) for name, value in {**self.probe.tensors(), **self.beside}.items()}
        weights = hashlib.sha256(save(tensors) + b"".join(self.probe.files().values())).hexdigest()
        fields = {"kind", "pass_", "site", "parameters", "calibration", "mean_tokens", "output_tokens", "statistics"}
        facts = [weights, self.card.model_dump(mode="json", include=fields)]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def load_artifact(
    folder: str | os.PathLike[str],
    *,
    allow: Collection[str] = (),
    probe_models: Mapping[str, str] | None = None,
    dtype: Dtype | None = None,
    verify: bool = True,
    renderers: list[Renderer] | None = None,
    foreign: bool = False,
) -> Artifact:
    """Read and check a probe artifact.

    Args:
        allow: names of checks (`probes.checks.CHECKS`) that may fail.
        probe_models: a card's probe model, as the card names it or by the last component of that -> the folder or Hub
            id (`owner/name@revision`) to use instead.
        dtype: what the probe model is to run in; None: what the card says.
        verify: whether to compare the probe model's template, tokenizer and weights with the card, for which they must
            be at hand.
        renderers: what verifying made; several calls may share one list.
        foreign: the folder comes from elsewhere, so that a path on its card leads nowhere here.

    Raises:
        ProbeError: the folder, a file or a value in it is missing or wrong, or a check fails; names it and the fix.
    """
    check_names(allow)
    folder = Path(folder)
    if not folder.is_dir():
        raise ProbeError(f"no probe folder at {folder}: name one that `pika train` wrote")
    card = _read_card(folder / CONFIG)
    files = {name: _read_file(folder / name) for name in card.files if name not in (CONFIG, WEIGHTS)}
    tensors = _read_tensors(folder / WEIGHTS)
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    beside = {name: tensor for name, tensor in tensors.items() if "." in name}
    try:
        probe = load(card.kind).from_artifact(card, own, files)
        _check_beside(card, beside)
    except ProbeError as error:
        raise ProbeError(f"{folder}: {error}") from error
    if set(files) != set(probe.files()):
        names = ", ".join((CONFIG, WEIGHTS, *probe.files()))
        raise ProbeError(f"{folder / CONFIG}: files must name {names} for a probe of kind {card.kind}; {RETRAIN}")
    content = b"".join((folder / name).read_bytes() for name in (CONFIG, WEIGHTS, *files))
    revision = hashlib.sha256(content).hexdigest()[:12]
    served = served_pass(card, folder, probe_models or {}, verify, foreign)
    if served is not None and dtype is not None:
        served = served.model_copy(update={"dtype": dtype})
    artifact = Artifact(folder, card, probe, revision, served, beside, source=str(folder))
    if not verify or served is None:
        return artifact
    warn_of_unverified(card, served)
    mismatches = check_all(card, served, allow, [] if renderers is None else renderers)
    return replace(artifact, mismatches=mismatches)


def _check_beside(card: ProbeCard, beside: Tensors) -> None:
    """
    Raises:
        ProbeError: tensors beside the probe's own and the card do not fit together.
    """
    if card.site is None and (card.output_tokens is not None or card.statistics is not None):
        raise ProbeError("output_tokens and statistics need activations, of which a probe without a site reads none")
    expected = set()
    if card.output_tokens is not None:
        output_tokens.check(card.output_tokens, beside, card.d_model)
        expected.add(output_tokens.WEIGHT)
    if card.statistics is not None:
        statistics.check(card.statistics, beside, card.d_model)
        expected.update(statistics.NAMES)
    if surplus := set(beside) - expected:
        raise ProbeError(f"{WEIGHTS} holds {quoted(min(surplus))}, of which the card knows nothing")


def served_pass(
    card: ProbeCard, folder: Path, probe_models: Mapping[str, str], needed: bool, foreign: bool
) -> Pass | None:
    """The card's pass with what the operator put in the probe model's place, resolved against the right folder.

    Args:
        needed: False: where the path leads nowhere, the card's pass is given as it stands.
        foreign: see `load_artifact`.

    Raises:
        ProbeError: the path leads nowhere.
    """
    if card.pass_ is None:
        return None
    named = card.pass_.probe_model
    instead = probe_models.get(named, probe_models.get(short_name(named)))
    try:
        if instead is None:
            return card.pass_.model_copy(update={"probe_model": _own_model(named, folder, foreign)})
        model, _, revision = instead.partition("@")
        update = {"probe_model": resolve_model(model), "revision": revision or card.pass_.revision}
        return card.pass_.model_copy(update=update)
    except ProbeError as error:
        if not needed:
            return card.pass_
        raise ProbeError(f"{folder / CONFIG}: {error}") from error


def _own_model(named: str, folder: Path, foreign: bool) -> str:
    """
    Raises:
        ProbeError: it is a path that leads nowhere; says how to name another.
    """
    try:
        if foreign and is_path(named):
            raise ProbeError(f"probe model {named!r} is a folder where the probe was trained, not here")
        return named if foreign else resolve_model(named, folder)
    except ProbeError as error:
        raise ProbeError(
            f"{error}; say where you have it: engine.probe_models: {{{short_name(named)}: FOLDER}} in the "
            "configuration, --probe-model FOLDER on the command line"
        ) from error


def save_artifact(folder: str | os.PathLike[str], card: ProbeCard, probe: Probe, beside: Tensors | None = None) -> None:
    """Write a probe artifact, whole or not at all; an older one at that place is replaced.

    Args:
        beside: tensors of the output-token head and the activation statistics.

    Raises:
        ProbeError: something that is no probe artifact stands there.
    """
    folder = Path(folder).absolute()
    if folder.exists() and not (folder / CONFIG).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ProbeError(f"{folder} exists and is no probe folder: remove it or write elsewhere")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        new.mkdir()
        config = card.model_dump(mode="json", by_alias=True)
        (new / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", "utf-8")
        # safetensors' save_file would make a file that nobody else may read.
        tensors = {name: np.ascontiguousarray(tensor) for name, tensor in {**probe.tensors(), **(beside or {})}.items()}
        (new / WEIGHTS).write_bytes(save(tensors))
        for name, content in probe.files().items():
            (new / name).write_bytes(content)
        try:
            # A folder that is not empty cannot be renamed over.
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:  # Ctrl-C between the two included
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise


def distinct_passes(artifacts: Iterable[Artifact]) -> tuple[Pass, ...]:
    """The passes that the artifacts need, each once, in order of first use."""
    passes: list[Pass] = []
    for artifact in artifacts:
        if artifact.pass_ is not None and artifact.pass_ not in passes:
            passes.append(artifact.pass_)
    return tuple(passes)


def _read_card(file: Path) -> ProbeCard:
    data = json_of(_read_file(file), str(file), RETRAIN)
    if not isinstance(data, dict):
        raise ProbeError(f"{file} must hold a JSON object; {RETRAIN}")
    version = data.get("schema_version")
    if version != 1:
        raise ProbeError(f"{file}: schema_version is {quoted(version)}, this release reads 1; {RETRAIN}")
    try:
        card = ProbeCard.model_validate(data)
    except ValidationError as error:
        raise ProbeError(f"{file}: {problems(error)}; {RETRAIN}") from error
    for name in card.files:
        if name not in LIMITS:
            raise ProbeError(f"{file}: files names {name!r}; a probe has {', '.join(LIMITS)} at most")
    return card


def _read_tensors(file: Path) -> dict[str, NDArray[np.float32]]:
    _check_size(file)
    try:
        tensors: dict[str, NDArray[np.float32]] = load_file(file)
    # safetensors asks NumPy for types that it has not, such as those of 8 bits: an AttributeError.
    except (OSError, SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())[: 2 * MOST]
        raise ProbeError(f"{file} is not a safetensors file of NumPy types: {said}; {RETRAIN}") from error
    for name, tensor in tensors.items():
        if len(name) > MOST or not name.isprintable():
            raise ProbeError(f"{file}: {quoted(name)} is no name of a probe's tensor; {RETRAIN}")
        if tensor.dtype != np.float32:
            raise ProbeError(f"{file}: tensor {quoted(name)} is {tensor.dtype}, not float32; {RETRAIN}")
        if not np.isfinite(tensor).all():
            raise ProbeError(f"{file}: tensor {quoted(name)} has values that are not finite; {RETRAIN}")
    return tensors


def _read_file(file: Path) -> bytes:
    _check_size(file)
    return file.read_bytes()


def _check_size(file: Path) -> None:
    limit = LIMITS[file.name]
    if not file.is_file():
        raise ProbeError(f"{file} is missing: the folder is no whole probe artifact; {RETRAIN}")
    if file.stat().st_size > limit:
        raise ProbeError(f"{file} has more than {limit // 2**20} MiB, which no probe needs; {RETRAIN}")
