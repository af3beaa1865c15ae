"""The card of a probe that was just trained."""

import math
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from offline.fit import Fitted, task_of
from offline.training_set import ArmRollouts, TrainingSet
from probes.artifact import CONFIG, WEIGHTS
from probes.card import Label, Pass, ProbeCard, Target
from probes.fingerprint import fingerprint_of
from probes.prompt import CANARY_PROMPT, Renderer

LIBRARIES = ("numpy", "scikit-learn", "tokenizers", "torch", "transformers")


def make_card(
    data: TrainingSet,
    arm: ArmRollouts,
    request: Mapping[str, Any],
    fitted: Fitted,
    label: Label,
    renderer: Renderer | None,
    training: Mapping[str, Any],
    folder: Path,
) -> ProbeCard:
    """All that is known of one arm's probe but its weights.

    Args:
        renderer: of the probe's pass; None where it reads text alone.
        request: the arm's request fields.
        training: what the caller knows of how it was trained.
        folder: where the artifact will stand; a probe model's path is written relative to it.
    """
    probe, fit = fitted.fit.probe, fitted.fit
    site = probe.site
    reads_tokens = renderer is not None and probe.reads != "text"
    kind = probe.kind
    return ProbeCard(
        kind=kind,
        pass_=relative_pass(renderer.pass_, folder) if renderer is not None and reads_tokens else None,
        site=site,
        d_model=fitted.d_model,
        parameters=probe.parameters(),
        probe_model_fingerprint=fingerprint_of(renderer.pass_) if renderer is not None and site is not None else None,
        canary_prompt=CANARY_PROMPT if reads_tokens else None,
        canary_token_ids=renderer.tokenize(CANARY_PROMPT) if renderer is not None and reads_tokens else None,
        target=Target(
            arm=arm.name,
            model=arm.model,
            request=dict(request),
            temperature=arm.temperature,
            max_tokens=arm.max_tokens,
            k=arm.k,
        ),
        label=label,
        benchmark=data.benchmark,
        calibration=fitted.calibration,
        metrics=[fitted.metrics],
        baselines=fitted.baselines,
        mean_tokens=arm.mean_tokens,
        output_tokens=fitted.output_tokens,
        statistics=fitted.statistics,
        training={**training, "validation": fitted.validation, **fit.facts},
        versions={library: version(library) for library in LIBRARIES},
        probe_name=f"{arm.name}--{data.benchmark}--{kind}_probe--{label}--k{arm.k}-t{arm.temperature:g}",
        model_name=arm.model,
        dataset=data.benchmark,
        probe_type=f"{kind}_probe",
        label_type=label,
        k=arm.k,
        temperature=arm.temperature,
        max_len=arm.max_tokens,
        best_layer_idx=None if site is None else site.layer,
        best_position_value=None if site is None else site.position,
        best_alpha=fit.alpha,
        task_type=task_of(label),
        test_score=_defined(fitted.test_score),
        best_val_score=_defined(fit.score),
        files=[CONFIG, WEIGHTS, *probe.files()],
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _defined(score: float) -> float | None:
    """None where a rank measure of constants is not a number."""
    return score if math.isfinite(score) else None


def relative_pass(pass_: Pass, folder: Path) -> Pass:
    """The same pass, a probe model's folder as it is from an artifact's."""
    if not Path(pass_.probe_model).is_dir():
        return pass_
    relative = os.path.relpath(pass_.probe_model, folder.resolve())
    return pass_.model_copy(update={"probe_model": Path(relative).as_posix()})
