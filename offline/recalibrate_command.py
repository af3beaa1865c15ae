"""`pika probes calibrate --ledger`: a new revision of a probe from what came of its decisions, if that is better."""

import json
from argparse import Namespace
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from offline.evaluate import DataError
from offline.ledger_source import ledger_of
from offline.metrics import with_interval
from offline.recalibrate import EARLIER_SPLIT, HELD_BACK, LEAST, Correction, Observed, correct_calibration
from offline.revision import pass_from, revision_folder
from probes.artifact import Artifact, save_artifact
from probes.card import Metrics
from probes.reference import load_probe
from routing_policies.off_policy import worth
from server.ledger.database import Database
from server.ledger.outcomes import Judged, latest, scored_arms

MOST = 50_000
"""The latest outcomes."""
BY_ROUTING = ("routed", "audit", "canary", "sticky")
"""Paths of requests that the gateway sent somewhere by itself; for those pinned, out of distribution or falling back
something else chose."""


@dataclass(frozen=True)
class _Seen:
    arm: str
    judged: Judged
    weighed: bool
    """Whether an audit says how likely each was; else they speak for what routing sent to the arm."""
    worth_audited: float
    """How many equally likely outcomes would tell as much of all prompts as those of the time of an audit."""

    @property
    def observed(self) -> Observed:
        propensity = self.judged.propensity
        return Observed(self.judged.p, self.judged.correct, propensity if self.weighed else np.ones(len(propensity)))


def recalibrate(args: Namespace) -> int:
    """
    Raises:
        DataError, ProbeError, LedgerError, ConfigError: it cannot be done; names the fix.
    """
    # The probe model is not needed: the ledger has the probabilities that it led to.
    artifact = load_probe(args.probe, verify=False, probe_model=args.probe_model)
    out = revision_folder(args.probe, args.out, artifact)
    database = ledger_of(args.ledger)
    try:
        with Console(stderr=True).status(f"outcomes in {database} ..."):
            seen = _seen(database, artifact, args.arm)
            found = correct_calibration(artifact.card.calibration, seen.observed, args.seed)
    finally:
        database.close()
    if found.better:
        card = artifact.card.model_copy(update=_changes(artifact, seen, found, args.seed, out))
        save_artifact(out, card, artifact.probe, artifact.beside)
    _report(artifact, seen, found, out)
    return 0


def _seen(database: Database, artifact: Artifact, arm: str | None) -> _Seen:
    probe = f"{artifact.card.probe_name}@{artifact.revision}"
    with database.read() as connection:
        arm = _arm(scored_arms(connection), probe, arm)
        judged = latest(connection, arm, probe, MOST, paths=BY_ROUTING)
    audited = judged.while_audited
    worth_audited = worth(1 / audited.propensity)
    if worth_audited >= LEAST:
        return _Seen(arm, audited, True, worth_audited)
    return _Seen(arm, judged, False, worth_audited)


def _arm(known: list[tuple[str, str | None]], probe: str, wanted: str | None) -> str:
    """The arm whose decisions the probe made.

    Raises:
        DataError: it made none, or those of several arms.
    """
    arms = sorted({arm for arm, by in known if by == probe and wanted in (None, arm)})
    if len(arms) == 1:
        return arms[0]
    if arms:
        raise DataError(f"{probe} decides for several arms: name one of {', '.join(arms)} with --arm")
    others = ", ".join(sorted({f"{arm} by {by}" for arm, by in known if by is not None})) or "none by any probe"
    of = "" if wanted is None else f" for the arm {wanted}"
    raise DataError(f"the ledger has no decisions by {probe}{of}; it has {others}")


def _changes(artifact: Artifact, seen: _Seen, found: Correction, seed: int, out: Path) -> dict[str, Any]:
    """What the new card says otherwise than the old one."""
    before = [
        one if one.split.endswith(EARLIER_SPLIT) else one.model_copy(update={"split": one.split + EARLIER_SPLIT})
        for one in artifact.card.metrics
        if not one.split.startswith(HELD_BACK)
    ]
    facts = {
        "ledger_arm": seen.arm,
        "outcomes": len(seen.judged.p),
        "worth": round(worth(1 / seen.observed.propensity)),
        "first": _time(seen.judged.at[0]),
        "last": _time(seen.judged.at[-1]),
        "for": "all prompts" if seen.weighed else "prompts that routing sent to the arm",
        "log_loss_gain": [found.gain.value, found.gain.low, found.gain.high],
        "seed": seed,
    }
    return {
        "pass_": pass_from(artifact, out),
        "calibration": found.calibration,
        "metrics": [*before, found.after],
        "baselines": {},  # nobody measured them on these
        "training": {**artifact.card.training, "calibrated_on": facts},
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


def _report(artifact: Artifact, seen: _Seen, found: Correction, out: Path) -> None:
    n = len(seen.judged.p)
    caption = f"on the latest {found.after.n} outcomes, which the correction has not seen [95% interval]"
    table = Table(title=f"{artifact.card.probe_name}, arm {seen.arm}", caption=caption, box=None, header_style="bold")
    for heading in ("", "before", "after"):
        table.add_column(heading, no_wrap=True)
    for name, label in (("ece", "ECE"), ("brier", "Brier"), ("auroc", "AUROC")):
        table.add_row(label, *(with_interval(getattr(metrics, name)) for metrics in (found.before, found.after)))
    console, gain = Console(), found.gain
    console.print(table)
    if seen.weighed:
        said = f"{n:,} outcomes, weighed by what the audit drew: they stand for all prompts."
    else:
        said = f"{n:,} outcomes of prompts that routing sent to {seen.arm}: they stand for such prompts alone. " + (
            f"Those of audited times are worth {seen.worth_audited:.0f} of all prompts; {LEAST} are needed."
            if seen.worth_audited
            else "With `audit: {share: 0.05}` in the configuration later ones stand for all."
        )
    console.print(said, soft_wrap=True)
    how = f"Log loss falls by {gain.value:.4f} nats [{gain.low:.4f}, {gain.high:.4f}]"
    if found.better:
        told = f"{how}: better. Written to {out}; reload the gateway, and run `pika tune` again where a pool is tuned."
    else:
        told = f"{how}, which may be chance: the present calibration stays, nothing is written."
    console.print(told, soft_wrap=True)
    summary = {
        "folder": str(out) if found.better else None,
        "written": found.better,
        "arm": seen.arm,
        "outcomes": n,
        "weighed": seen.weighed,
        "checked_on": found.after.n,
        "method": found.calibration.method,
        "log_loss_gain": gain.to_json(),
        "before": _values(found.before),
        "after": _values(found.after),
    }
    print(json.dumps(summary))


def _values(metrics: Metrics) -> dict[str, float]:
    return {name: getattr(metrics, name).value for name in ("ece", "brier", "auroc")}
