"""What the JSON files of a research project's probe folder say, as one of our cards."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from probes.artifact import CONFIG, LIMITS, WEIGHTS
from probes.base import ProbeError
from probes.card import Calibration, ProbeCard
from probes.json_text import json_of, problems, quoted
from probes.linear_form import LinearForm

PROBE = "best_probe.joblib"
SCALER = "platt_scaler.joblib"
METADATA = "probe_metadata.json"
RETRAIN = "train the probe anew with `pika train`"
DOWNLOAD = "download the whole folder again"
KINDS = ("linear_eoi_probe", "linear_eoi")
MAX_TOKENS = 1024
"""Where the research code cuts prompts."""

MATHEMATICS = re.compile(r"(?:.*[^a-z])?(?:(?:poly)?math|gsm8k|aime|amc)", re.IGNORECASE)
"""Data sets of the research project whose prompts end in `SUFFIX`: a word of the name begins with one of these, as in
DigitalLearningGmbH_MATH-lighteval, openai_gsm8k, gneubig_aime-1983-2024, opencompass_AIME2025, Qwen_PolyMath_en."""
SUFFIX = " Let's think step by step and output the final answer within \\boxed{}."
"""What follows the problem in the user's turn."""
MODEL = re.compile(r"(?P<base>.+?)(?:_(?P<effort>low|medium|high)|_reasoning)?")
"""Model names of the research project; how much the model was to reason may stand at their end."""

IN_BOTH = ("best_layer_idx", "best_position_value", "d_model", "task_type", "model_name")
REQUIRED = (*IN_BOTH, "dataset", "label_type", "k", "temperature", "max_len")
OTHER_NAMES = {"test_score": "test_auc", "best_val_score": "val_auc"}
"""Keys of ours -> what some of the published folders call them."""
MAJORITY = "majority_vote_is_correct"


def read_facts(folder: Path) -> dict[str, Any]:
    """What the two files say together, without nulls. In doubt the metadata counts, which the research code reads.

    Raises:
        ProbeError: a file is no JSON, the two contradict each other, lack something, or are of a probe not read here.
    """
    config, metadata = _read_json(folder / CONFIG), _read_json(folder / METADATA)
    for key in IN_BOTH:
        if key in config and key in metadata and config[key] != metadata[key]:
            raise ProbeError(
                f"{folder}: {CONFIG} says {key} = {quoted(config[key])}, {METADATA} {quoted(metadata[key])}: {DOWNLOAD}"
            )
    facts = {**config, **metadata}
    kind = facts.get("probe_type", KINDS[0])
    if kind not in KINDS:
        raise ProbeError(f"{folder} holds a {quoted(kind)} of the research project, which is not read: {RETRAIN}")
    if not (folder / PROBE).is_file():
        raise ProbeError(f"{folder} holds no {PROBE}, no probe of the research project that is read: {RETRAIN}")
    if not (folder / SCALER).is_file() and (facts.get("has_platt_scaler") or SCALER in str(facts.get("files"))):
        raise ProbeError(f"{folder / SCALER} is missing: {DOWNLOAD}")
    if missing := [key for key in REQUIRED if key not in facts]:
        raise ProbeError(f"{folder}: {CONFIG} and {METADATA} lack {', '.join(missing)}: {DOWNLOAD}, or {RETRAIN}")
    for ours, theirs in OTHER_NAMES.items():
        facts.setdefault(ours, facts.get(theirs))
    return facts


def legacy_card(facts: Mapping[str, Any], form: LinearForm, scaler: LinearForm | None) -> ProbeCard:
    """The card of a probe whose probe model nobody has looked at: in float32, at no revision.

    Args:
        scaler: Platt's, of the form's output.

    Raises:
        ProbeError: a fact is not what a card can hold, or does not fit the model.
    """
    match = MODEL.fullmatch(str(facts["model_name"]))
    if match is None:
        raise ProbeError("model_name is empty")
    effort = {} if match["effort"] is None else {"reasoning_effort": match["effort"]}
    same = ("model_name", "dataset", "label_type", "k", "temperature", "max_len", "best_layer_idx", "task_type")
    fields = {
        **{key: facts[key] for key in (*same, "best_position_value", "d_model")},
        **{key: facts.get(key) for key in ("best_alpha", "test_score", "best_val_score")},
        "kind": "linear_eoi",
        "pass": {
            "probe_model": match["base"],
            "recipe": {
                "chat_template_sha256": None,
                "suffix": SUFFIX if MATHEMATICS.match(str(facts["dataset"])) else "",
                "max_tokens": MAX_TOKENS,
                "template_kwargs": effort,
            },
        },
        "site": {"layer": facts["best_layer_idx"], "position": facts["best_position_value"]},
        "canary_prompt": None,
        "canary_token_ids": None,
        "target": {
            "arm": str(facts["model_name"]).rpartition("/")[2],
            "model": match["base"],
            "request": effort,
            "temperature": facts["temperature"],
            "max_tokens": facts["max_len"],
            "k": facts["k"],
        },
        "label": facts["label_type"],
        "benchmark": facts["dataset"],
        "metrics": [],  # those on record have no intervals
        "baselines": {},
        "mean_tokens": None,
        "training": {"recorded": {key: value for key, value in facts.items() if _is_further(key, value)}},
        "versions": {"scikit-learn": form.version} if form.version else {},
        "probe_name": facts.get("probe_name", str(facts["model_name"])),
        "probe_type": KINDS[0],
        "files": [CONFIG, WEIGHTS],
        "exported_at": facts.get("exported_at", ""),
    }
    try:
        return ProbeCard.model_validate({**fields, "calibration": _calibration(facts, form, scaler)})
    except ValidationError as error:
        raise ProbeError(problems(error)) from error


def _is_further(key: str, value: Any) -> bool:
    """Whether a fact has no place of its own on the card."""
    return isinstance(value, str | int | float) and key not in ProbeCard.model_fields


def _calibration(facts: Mapping[str, Any], form: LinearForm, scaler: LinearForm | None) -> Calibration:
    """From weight . activation, without the form's intercept, to what the research code predicts.

    Regression is clipped and not calibrated. Classification is Platt's scale of the log-odds, which takes the
    intercept in; without a scale it is the log-odds' probability, which nobody calibrated.
    """
    task = facts["task_type"]
    if form.classifies != (task == "classification"):
        raise ProbeError(f"task_type is {quoted(task)}, which the model in {PROBE} is not made for")
    temperature = facts.get("calibration_temperature")
    if temperature is not None and not _divides(temperature):
        raise ProbeError(f"calibration_temperature is {quoted(temperature)}, which is no finite number above 0")
    if not form.classifies:
        if form.intercept != 0 or temperature is not None or scaler is not None:
            raise ProbeError("a regression with an intercept, a temperature or a Platt scaler is not read")
        return Calibration(method="none", of=None)
    if scaler is None:
        scale, bias = 1 / float(temperature or 1), 0.0
    elif scaler.classifies and scaler.weight.size == 1:
        scale, bias = float(scaler.weight[0]), scaler.intercept
    else:
        raise ProbeError(f"{SCALER} is no logistic regression of one input")
    fitted = Calibration(method="platt", scale=scale, bias=bias + scale * form.intercept, of=None)
    if scaler is None:
        return fitted
    return fitted.model_copy(update={"of": "majority_vote" if facts["label_type"] == MAJORITY else "success"})


def _divides(temperature: object) -> bool:
    """Whether it is a number that logits can be divided by."""
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature <= 0:
        return False
    try:
        return math.isfinite(float(temperature)) and math.isfinite(1 / float(temperature))
    except OverflowError:  # of an int
        return False


def _read_json(file: Path) -> dict[str, Any]:
    """A JSON object without its nulls, and without the NaN and infinities that Python writes."""
    if not file.is_file():
        return {}
    if file.stat().st_size > LIMITS[CONFIG]:
        raise ProbeError(f"{file} has more than {LIMITS[CONFIG] // 2**20} MiB, which no probe needs; {DOWNLOAD}")
    data = json_of(file.read_bytes(), str(file), DOWNLOAD, parse_constant=lambda name: None)
    if not isinstance(data, dict):
        raise ProbeError(f"{file} must hold a JSON object; {DOWNLOAD}")
    return {key: value for key, value in data.items() if value is not None}
