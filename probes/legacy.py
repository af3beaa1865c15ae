"""Probe folders as the research project (KabakaWilliam/llms_know_difficulty) publishes them.

artifact = load_legacy("gpt-oss-20b-low--MATH--linear-eoi-probe--mv-correct--k5-t1.0")

A folder holds `config.json`, `probe_metadata.json`, `best_probe.joblib`, and `platt_scaler.joblib` for classification.
The joblib files are pickles, read by `allow_list.py`, which runs nothing. What a folder does not tell (the probe
model's revision, template, tokenizer and weights) cannot be checked, which is logged; `pika probes convert` records it.
"""

import hashlib
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from probes.allow_list import read_model
from probes.artifact import CONFIG, WEIGHTS, Artifact, served_pass
from probes.base import ProbeError
from probes.card import Dtype, Pass, ProbeCard
from probes.checks import check_all, check_names
from probes.legacy_card import METADATA, PROBE, RETRAIN, SCALER, legacy_card, read_facts
from probes.linear_eoi import LinearEoi
from probes.linear_form import LinearForm, linear_form
from probes.prompt import Renderer
from probes.source import model_file, read_json

logger = logging.getLogger(__name__)

PICKLES = (".joblib", ".pkl", ".pt", ".pth")
"""Suffixes of weights that are pickles: no folder of ours has such a file."""


def is_legacy(folder: Path) -> bool:
    """Whether a folder is one of the research project, of whatever kind of probe."""
    if not folder.is_dir() or (folder / WEIGHTS).exists():
        return False
    return any(file.suffix in PICKLES for file in folder.iterdir())


def load_legacy(
    folder: str | os.PathLike[str],
    *,
    allow: Collection[str] = (),
    probe_models: Mapping[str, str] | None = None,
    dtype: Dtype | None = None,
    verify: bool = True,
    renderers: list[Renderer] | None = None,
    foreign: bool = False,
) -> Artifact:
    """Read and check a folder of the research project; takes what `probes.artifact.load_artifact` takes.

    The probe model is the very model whose success is predicted, and runs in the type that its configuration names, as
    in the research code. Where the model is no local folder and not to be verified, that is taken to be float32.

    Raises:
        ProbeError: a file is missing, refused or damaged, the probe is of a kind that is not read, or a check fails.
    """
    check_names(allow)
    folder = Path(folder)
    if not folder.is_dir():
        raise ProbeError(f"no probe folder at {folder}: name one of the research project's")
    card, probe = _read(folder)
    assert card.pass_ is not None
    served = served_pass(card, folder, probe_models or {}, verify, foreign)
    assert served is not None
    # No revision is on record, so the one asked for is the one to go by.
    trained = card.pass_.model_copy(update={"revision": served.revision})
    if verify or Path(served.probe_model).is_dir():
        trained = trained.model_copy(update={"dtype": _own_dtype(served, card, folder)})
    card = card.model_copy(update={"pass_": trained})
    served = served.model_copy(update={"dtype": dtype or trained.dtype})
    artifact = Artifact(folder, card, probe, _revision(folder), served, source=str(folder))
    if not verify:
        return artifact
    logger.warning(
        "%s does not say which template, tokenizer, revision and weights of %s it was trained with: not checked; "
        "`pika probes convert` makes a probe that says so",
        folder,
        served.probe_model,
    )
    return replace(artifact, mismatches=check_all(card, served, allow, [] if renderers is None else renderers))


def _read(folder: Path) -> tuple[ProbeCard, LinearEoi]:
    facts = read_facts(folder)
    form = _form(folder / PROBE)
    scaler = _form(folder / SCALER) if (folder / SCALER).exists() else None
    try:
        card = legacy_card(facts, form, scaler)
        return card, LinearEoi.from_artifact(card, {"weight": form.weight.astype(np.float32)}, {})
    except ProbeError as error:
        raise ProbeError(f"{folder}: {error}; {RETRAIN}") from error


def _form(file: Path) -> LinearForm:
    model = read_model(file)
    try:
        return linear_form(model)
    except ProbeError as error:
        raise ProbeError(f"{file}: {error}; {RETRAIN}") from error


def _own_dtype(served: Pass, card: ProbeCard, folder: Path) -> Dtype:
    """What the probe model's configuration says it is, which is how the research code loads it.

    Raises:
        ProbeError: its activations are not of the probe's size.
    """
    config = read_json(model_file(served, "config.json"))
    text = config.get("text_config")
    config = {**config, **(text if isinstance(text, dict) else {})}
    d_model = config.get("hidden_size")
    if d_model is not None and d_model != card.d_model:
        raise ProbeError(
            f"{folder}: the probe reads {card.d_model} dimensions, {served.probe_model} has {d_model}: "
            f"give {card.model_name}, with which it was trained"
        )
    found: Any = config.get("dtype") or config.get("torch_dtype")
    if found is None:  # of quantised models, such as gpt-oss
        return "bfloat16" if "quantization_config" in config else "float32"
    if found not in get_args(Dtype):
        raise ProbeError(f"{served.probe_model} is in {found!r}, in which no probe model is run")
    dtype: Dtype = found
    return dtype


def _revision(folder: Path) -> str:
    files = [folder / name for name in (CONFIG, METADATA, PROBE, SCALER) if (folder / name).is_file()]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]
