"""`pika probes calibrate`: a new revision of a probe, whose probabilities are those of new data or of another label.

The probe's weights stay as they are; only what turns its raw outputs into probabilities is fitted anew. So a probe of
whether the majority vote is correct becomes one of whether a single answer is.
"""

import json
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from offline.evaluate import DataError, split_name
from offline.labelled import Labelled, Rows, read_labelled
from offline.metrics import measure, with_interval
from offline.revision import pass_from, revision_folder
from probes import calibration
from probes.artifact import Artifact, save_artifact
from probes.base import FloatArray, ProbeError
from probes.calibration import Method
from probes.card import Calibration, Metrics
from probes.checks import CHECKS
from probes.engine.local import LocalEngine
from probes.hub_errors import HubAwayError
from probes.reference import load_probe

EXAMPLES = """examples:
  pika probes calibrate probes/oss-low --data rollouts.parquet           where answers or prompts have changed since
  pika probes calibrate hf://owner/repo/majority-vote-probe --data rollouts.parquet --out probes/oss-low
  pika probes calibrate probes/oss-low --ledger pool.yaml                by what clients said of its answers

DATA is what `pika rollouts` wrote, or any parquet with problem (or question), split, and success_rate (or the --label);
where it has a column arm, rows of the probe's arm count. Without test problems, metrics are cross-fitted on the others.
LEDGER is a gateway's: fitted on the earlier outcomes of the probe's decisions, checked on the later ones, and written
only where it is surely better there. Where requests were audited, outcomes are weighed to stand for all prompts; else
they stand for those that routing sent to the arm.
Where a pool uses the probe, run `pika tune` again afterwards.
"""
OF = {"success_rate": "success", "majority_vote_is_correct": "majority_vote"}
"""What probabilities are of that were fitted to a label."""
BATCH = 256
LEAST = 30
"""Problems to fit on: fewer say nothing of probabilities."""


@dataclass(frozen=True)
class Revised:
    calibration: Calibration
    before: Metrics
    """On the same problems as `after`, by the old calibration."""
    after: Metrics
    length: Metrics
    """Of the prompt's length alone."""


def main(argv: list[str]) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.ledger is not None:
        return _recalibrate(parser, args)
    try:
        artifact = _load(args)
        out = revision_folder(args.probe, args.out, artifact)
        data = read_labelled(args.data, args.arm or artifact.card.target.arm, args.label)
        fit_rows = data.rows(args.split)
        test_rows = data.splits.get("test")
        _check(fit_rows, test_rows, args)
        if args.split == "train":
            print(
                "pika probes calibrate: probes flatter themselves on the problems they were fitted on", file=sys.stderr
            )
        revised = revise(artifact, fit_rows, test_rows, args)
        card = artifact.card.model_copy(update=_changes(artifact, revised, data, args, out))
        save_artifact(out, card, artifact.probe, artifact.beside)
    except (DataError, ProbeError) as error:
        print(f"pika probes calibrate: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    except OSError as error:
        print(f"pika probes calibrate: {error}", file=sys.stderr)
        return 1
    _report(out, artifact, revised)
    return 0


def _recalibrate(parser: ArgumentParser, args: Namespace) -> int:
    for name in ("split", "label", "method"):
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} is of --data; leave it out")
    from offline.recalibrate_command import recalibrate  # it brings SQLAlchemy
    from server.config import ConfigError
    from server.ledger.database import LedgerError

    try:
        return recalibrate(args)
    except (DataError, ProbeError, ConfigError) as error:
        print(f"pika probes calibrate: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    except (LedgerError, OSError) as error:
        print(f"pika probes calibrate: {error}", file=sys.stderr)
        return 1


def revise(artifact: Artifact, fit_rows: Rows, test_rows: Rows | None, args: Namespace) -> Revised:
    """Fit on some problems, measure on others; where there are none, on the same by cross-fitting.

    Raises:
        ProbeError: the probe cannot be run, or says of these problems nothing, or the opposite.
    """
    rows = [fit_rows] if test_rows is None else [fit_rows, test_rows]
    texts = [problem for part in rows for problem in part.problems]
    raw, lengths = _score(artifact, texts, args.device)
    n = len(fit_rows.problems)
    rate = fit_rows.rate
    fitted = (
        calibration.choose(raw[:n], rate, args.seed)
        if args.method == "auto"
        else calibration.fit(args.method, raw[:n], rate)
    )
    ends = calibration.apply(fitted, np.array([raw[:n].min(), raw[:n].max()]))
    if ends[1] <= ends[0]:
        how = "falls" if ends[1] < ends[0] else "stays the same"
        raise ProbeError(
            f"by these labels the success probability {how} as the probe's output rises: it tells nothing of this arm "
            "on these problems; look whether --arm and --label are those that it was trained for, or train it anew"
        )
    # A method that was forced upon raw outputs without being fitted makes nothing known of them.
    of = None if args.method == "none" else OF[args.label]
    by_length = calibration.choose(lengths[:n], rate, args.seed)
    if test_rows is None:
        split, where = f"{args.split}, cross-fitted", slice(None)
        after = calibration.held_out(fitted.method, raw, rate, args.seed)
    else:
        split, where, rate = "test", slice(n, None), test_rows.rate
        after = calibration.apply(fitted, raw[where])

    def on(p: FloatArray) -> Metrics:
        return measure(p, rate, split, args.seed)

    return Revised(
        calibration=fitted.model_copy(update={"of": of}),
        before=on(calibration.apply(artifact.card.calibration, raw[where])),
        after=on(after),
        length=on(calibration.apply(by_length, lengths[where])),
    )


def _check(fit_rows: Rows, test_rows: Rows | None, args: Namespace) -> None:
    """
    Raises:
        DataError: there are too few problems, or all have one label.
    """
    n = len(fit_rows.problems)
    if n < LEAST:
        raise DataError(f"{args.data} has {n} {args.split} problems; calibration needs at least {LEAST}")
    for split, rows in ((args.split, fit_rows), ("test", test_rows)):
        if rows is not None and np.ptp(rows.rate) == 0:
            raise DataError(
                f"the {args.label} is {rows.rate[0]:g} on every {split} problem of {args.data}, which tells nothing: "
                "sample more or other problems"
            )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika probes calibrate",
        description="A new revision of a probe, calibrated on other data or towards another label.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("probe", metavar="PROBE", help="a folder, or hf://owner/repo/folder[@revision]")
    of = parser.add_mutually_exclusive_group(required=True)
    of.add_argument("--data", type=Path, help="parquet of problems and how they were answered")
    of.add_argument("--ledger", metavar="LEDGER", help="a gateway's configuration, or its ledger's URL")
    parser.add_argument(
        "--split", type=split_name, default="validation", help="its problems to fit on (default: %(default)s)"
    )
    parser.add_argument(
        "--label",
        choices=list(OF),
        default="success_rate",
        help="what the probabilities shall be of; success_rate (default): of one answer's being correct",
    )
    parser.add_argument(
        "--method",
        choices=["auto", *get_args(Method)],
        default="auto",
        help="auto (default): by cross-validation, the simplest within one standard error of the best",
    )
    parser.add_argument("--arm", help="whose rows count (default: the arm that the probe was trained for)")
    parser.add_argument("--probe-model", metavar="FOLDER|ID", help="where the probe's model is, if not where it says")
    parser.add_argument(
        "--allow-mismatch", action="append", default=[], choices=CHECKS, help="a check that may fail; repeatable"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where it goes (default: in place)")
    parser.add_argument("--device", default="auto", help="cpu, cuda:N or auto (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the folds and the intervals' bootstrap")
    return parser


def _load(args: Namespace) -> Artifact:
    if args.split == "test":
        raise DataError("the test split is for the final figures: calibrate on validation")
    return load_probe(args.probe, allow=args.allow_mismatch, probe_model=args.probe_model)


def _score(artifact: Artifact, problems: list[str], device: str) -> tuple[FloatArray, FloatArray]:
    """Raw outputs, (n,), and lengths of the prompts: in tokens, or in characters where no probe model reads them."""
    engine = LocalEngine([artifact], device)
    prompts = engine.render(problems)
    console = Console(stderr=True)
    batches = [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]
    raw = [engine.raw(batch)[:, 0] for batch in track(batches, "raw outputs", console=console)]
    lengths = [len(prompt.token_ids[0]) if engine.passes else len(prompt.text) for prompt in prompts]
    return np.concatenate(raw), np.array(lengths, dtype=np.float64)


def _changes(artifact: Artifact, revised: Revised, data: Labelled, args: Namespace, out: Path) -> dict[str, Any]:
    """What the new card says otherwise than the old one."""
    card = artifact.card
    baselines = {"length": revised.length}
    if args.label == "success_rate" and data.sha256 == card.training.get("rollouts_sha256"):
        # Measured on the same problems; on others TF-IDF would need its training data.
        baselines |= {name: one for name, one in card.baselines.items() if one.split == revised.after.split}
    facts = {
        "file": args.data.name,
        "sha256": data.sha256,
        "split": args.split,
        "problems": len(data.rows(args.split).problems),
        "label": args.label,
        "method": args.method,
        "seed": args.seed,
    }
    return {
        "pass_": pass_from(artifact, out),
        "calibration": revised.calibration,
        "metrics": [revised.after],
        "baselines": baselines,
        "training": {**card.training, "calibrated_on": facts},
        "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _report(out: Path, artifact: Artifact, revised: Revised) -> None:
    after = revised.after
    caption = f"on {after.n} problems ({after.split}) [95% interval]"
    table = Table(title=artifact.card.probe_name, caption=caption, box=None, header_style="bold")
    for heading in ("", "before", "after"):
        table.add_column(heading, no_wrap=True)
    cards = (artifact.card.calibration, revised.calibration)
    table.add_row("method", *(one.method for one in cards))
    table.add_row("P of", *((one.of or "unknown").replace("_", " ") for one in cards))
    for name, label in (("ece", "ECE"), ("brier", "Brier"), ("auroc", "AUROC")):
        table.add_row(label, *(with_interval(getattr(metrics, name)) for metrics in (revised.before, after)))
    Console().print(table)
    summary = {
        "folder": str(out),
        "method": revised.calibration.method,
        "of": revised.calibration.of,
        "split": after.split,
        "problems": after.n,
        "before": _values(revised.before),
        "after": _values(after),
    }
    print(json.dumps(summary))


def _values(metrics: Metrics) -> dict[str, float]:
    names = ("ece", "brier", "auroc", "spearman")
    return {name: getattr(metrics, name).value for name in names}
