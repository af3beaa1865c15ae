"""What `evaluation.json` says of an evaluation."""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offline.evaluation import probe_figures
from offline.evaluation.evaluation import Evaluation, Known
from offline.evaluation.figures import figures, to_json
from offline.evaluation.known import saw
from offline.evaluation.verdict import verdict
from offline.left_out_tests import left_out
from offline.provenance import RECORDED, Caveats, caveats, provenance
from server.config import Settings, pool_sha256

if TYPE_CHECKING:
    from probes.artifact import Artifact


def record(
    settings: Settings,
    artifacts: "Mapping[str, Artifact]",
    found: Evaluation,
    before: Known,
    now: Known,
    options: Namespace,
    argv: Sequence[str],
) -> dict[str, Any]:
    """`evaluation.json`."""
    files = [file for file in (options.data, options.validation_data) if file is not None]
    hashes = {name: artifact.predictions_sha256 for name, artifact in artifacts.items()}
    trial, samples, told = found.scale.trial, now.samples, caveats(files)
    mixed = [one for one in found.methods if one.group == "policy" and one.arms is not None]
    methods = [figures(method, found.scale) for method in found.methods]
    return {
        "schema_version": 1,
        "provenance": {
            **provenance("evaluate", argv, options.seed, [Path(options.config), *files]),
            "draws": options.draws,
            "pool_sha256": pool_sha256(settings, hashes),
        },
        "data": {
            "file": options.data.name,
            "benchmark": samples.benchmark,
            "problems": {
                "validation": len(before.samples.outcomes.problems),
                "test": len(samples.outcomes.problems),
            },
            "k": {arm.name: arm.k for arm in samples.arms},
            "tokens": told.tokens,
            "duplicates_removed": told.duplicates_removed
            + samples.duplicates_removed
            + before.samples.duplicates_removed,
        },
        "target": str(options.target),
        "prefill_usd": now.known.prefill_usd,
        "notes": [*_notes(found, artifacts, now, told, options), *_undefined(methods)],
        "arms": [_arm(settings, artifacts, found, i, options) for i in range(len(trial.arms))],
        "best_single": trial.arms[trial.best_arm],
        "methods": methods,
        "mix_by_difficulty": [probe_figures.mix_by_difficulty(method, trial) for method in mixed],
        "human_difficulty": probe_figures.human_difficulty(trial, options.seed, options.draws),
        "verdict": verdict(found.router, found.rivals, found.scale, options.target),
    }


def _arm(
    settings: Settings, artifacts: "Mapping[str, Artifact]", found: Evaluation, i: int, options: Namespace
) -> dict[str, Any]:
    trial = found.scale.trial
    arm, single = trial.samples.arms[i], found.scale.singles[i]
    probe = None
    if arm.name in artifacts:
        reference, rate = settings.arms[arm.name].probe, trial.samples.success_rate[:, i]
        p = trial.known.success[:, i]
        probe = probe_figures.probe(artifacts[arm.name], str(reference), p, rate, options.seed, options.draws)
    return {
        "name": arm.name,
        "model": arm.model,
        "accuracy": to_json(single.accuracy[:, 0]),
        "cost_usd": to_json(single.cost_usd[:, 0]),
        "tier_cost_usd": trial.known.tier_cost[i],
        "mean_input_tokens": float(trial.samples.outcomes.input_tokens[:, i].mean()),
        "mean_output_tokens": float(arm.output_tokens.mean()),
        "probe": probe,
    }


def _notes(
    found: Evaluation, artifacts: "Mapping[str, Artifact]", now: Known, told: Caveats, options: Namespace
) -> list[str]:
    """What a reader must know."""
    tokens = "recorded tokens" if told.tokens == RECORDED else f"tokens ({told.tokens})"
    trial, accuracy = found.scale.trial, now.samples.success_rate.mean(axis=0)
    notes = [
        "Knobs are chosen on validation problems by predicted accuracy, corrected by what was measured there.",
        f"Costs are {tokens} times the configured prices; methods that read probes pay for the probes' prefill.",
        "Saving at equal accuracy, AIQ and P-AUCCC are read off the frontier of the test problems, as the field does; "
        "no knob was chosen for them in advance.",
        *told.notes,
        *found.notes,
    ]
    if any(saw(one, now.samples.outcomes.sha256, options.test_split) for one in artifacts.values()):
        notes.append("In-sample: these test problems fitted or chose the probes, so the figures flatter them.")
    lacking = left_out(now.samples.metadata or [])
    if lacking.tests:
        notes.append(lacking.sentence)
    if options.look_at is not None:
        notes.append(
            f"What looks at {options.look_at}'s answers is fitted on train and validation problems. Validation answers "
            "are judged by a fit without them, and that chooses the cascade's knobs."
        )
    if accuracy.argmax() != trial.best_arm:
        notes.append(
            f"Validation problems name {trial.arms[trial.best_arm]} the best single arm; on the test problems "
            f"{trial.arms[int(accuracy.argmax())]} is more accurate."
        )
    for arm, rate in zip(trial.arms, accuracy, strict=True):
        if rate in (0, 1):
            what = "right" if rate else "wrong"
            notes.append(f"All answers of {arm} are {what}: nothing to rank, so its probe has no AUROC.")
    if now.known.prefill_usd == 0 and any(one.probe.site is not None for one in artifacts.values()):
        notes.append("The probes' prefill counts as free: set engine.usd_per_million_tokens in the configuration.")
    return notes


def _undefined(methods: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of intervals that leave out draws: how many, at most."""
    notes = []
    for figure, what in (("gap_closed", "gap closed"), ("limit_share", "share of the limit's saving")):
        shares = {one["label"]: one[figure]["undefined"] for one in methods if one[figure] is not None}
        label = max(shares, key=lambda name: shares[name], default=None)
        if label is not None and shares[label] > 0:
            notes.append(
                f"In up to {shares[label]:.1%} of the bootstrap draws ({label}) the {what} is not defined, since the "
                "limit gains nothing there; its intervals are of the other draws."
            )
    return notes
