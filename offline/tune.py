"""`pika tune`: chooses a policy and its knob on validation problems and writes the file that a configuration names.

`pika train` has chosen the probes' site and calibration on the same problems, so what the file says of accuracy and
saving is in-sample; test problems, which neither has seen, tell what to count on.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from offline.conformal import SAYS, Guarantee, guarantee, reach
from offline.evaluate import DataError, Outcomes, read_outcomes, split_name
from offline.evaluation.known import saw, validation
from offline.policy_search import RESAMPLES, SIMPLEST_FIRST, Target, TuneError, Tuning, tune
from offline.provenance import caveats, provenance
from offline.whole_file import write_whole
from probes.base import ProbeError
from probes.hub_errors import HubAwayError
from routing_policies.base import PolicyError
from server.config import ConfigError, load, pool_sha256

if TYPE_CHECKING:
    from probes.artifact import Artifact

NOTE = (
    "accuracies and savings are in-sample: the probes' site, their calibration and this policy were chosen on the "
    "same problems"
)
EXAMPLES = """examples:
  pika tune pool.yaml --data rollouts.parquet                            as accurate as the best single arm, for less
  pika tune pool.yaml --data rollouts.parquet --target accuracy=0.9      the least cost at 90% right
  pika tune pool.yaml --data rollouts.parquet --target cost=0.0002       the most right for 0.0002 USD per query
  pika tune pool.yaml --data fresh.parquet --guarantee 0.9               min_success that holds with 90% confidence
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        settings = load(options.config)
        out = options.out or settings.resolve(settings.policy.tuned or "policy.tuned.json")
        outcomes = read_outcomes(options.data, options.split, list(settings.arms))
        if options.split == "train":
            print("pika tune: the probes were fitted on the train split, so they flatter themselves", file=sys.stderr)
        from offline.label import load_probes  # torch: after all that can fail at once

        with Console(stderr=True).status(f"Scoring {len(outcomes.problems)} problems with the probes"):
            artifacts = load_probes(settings)
            data = validation(settings, artifacts, outcomes)
        held = None
        if options.guarantee is not None:
            held = guarantee(data.success, data.cost, data.success_rate, options.guarantee, options.seed)
        tuning = tune(data, options.target, options.policies, options.seed, held)
        probes = {name: artifact.predictions_sha256 for name, artifact in artifacts.items()}
        result = _result(pool_sha256(settings, probes), list(settings.arms), tuning, outcomes, options)
        result["provenance"] = provenance("tune", argv, options.seed, [Path(options.config), options.data])
        if held is not None:
            result["guarantee"] = _guarantee(held, list(artifacts.values()), outcomes, options)
    except (ConfigError, DataError, PolicyError, ProbeError, TuneError) as error:
        print(f"pika tune: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    try:
        write_whole(out, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        print(f"pika tune: cannot write {out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 1
    _show(tuning, list(settings.arms))
    _show_spread(tuning)
    for note in result["data"]["notes"]:
        print(f"- {note}", file=sys.stderr)
    brief = {key: value for key, value in result.items() if key not in ("table", "provenance")}
    if held is not None:
        print(reach(held, options.guarantee))
        brief["guarantee"] = {key: value for key, value in result["guarantee"].items() if key != "table"}
    print(json.dumps({"file": str(out), **brief}))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika tune",
        description="Choose a policy and its knob on validation problems, and write them to a file.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="the pool's YAML file")
    parser.add_argument("--data", type=Path, required=True, help="parquet that `pika rollouts` wrote")
    parser.add_argument("--split", type=_split, default="validation", help="its problems to choose on; never test")
    parser.add_argument(
        "--target", type=_target, default="accuracy=always-best", help="accuracy=always-best | accuracy=0..1 | cost=USD"
    )
    parser.add_argument("--policies", type=_policies, default=SIMPLEST_FIRST, help=f"of {','.join(SIMPLEST_FIRST)}")
    parser.add_argument(
        "--guarantee",
        type=_level,
        metavar="CONFIDENCE",
        help="make min_success hold its target with this confidence, such as 0.9: thresholds for every target, from "
        "problems that neither trained nor calibrated the probes",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: policy.tuned of CONFIG)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, and of the guarantee's order")
    return parser


def _split(text: str) -> str:
    if text == "test":
        raise argparse.ArgumentTypeError("the test split is for the final figures: choose on validation")
    return split_name(text)


def _level(text: str) -> float:
    try:
        level = float(text)
    except ValueError:
        level = 0.0
    if not 0 < level < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no confidence: a number between 0 and 1, such as 0.9")
    return level


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _policies(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in SIMPLEST_FIRST:
            raise argparse.ArgumentTypeError(f"{name!r} cannot be tuned: choose of {','.join(SIMPLEST_FIRST)}")
    return names


def _result(
    pool_hash: str, arms: list[str], tuning: Tuning, outcomes: Outcomes, options: argparse.Namespace
) -> dict[str, Any]:
    """What the file holds; the gateway reads pool_sha256, policy, knobs and table.

    A request may ask for any of the policies: each finds its own knob among `knobs`.
    """
    chosen, told = asdict(tuning.chosen), caveats([options.data])
    del chosen["knobs"]
    return {
        "schema_version": 1,
        "pool_sha256": pool_hash,
        "policy": chosen.pop("policy"),
        "knobs": {name: value for candidate in tuning.candidates for name, value in candidate.knobs.items()},
        "target": str(options.target),
        "note": NOTE,
        "on_validation": chosen,
        "best": arms[tuning.best_arm],
        "always_best": asdict(tuning.always_best),
        "data": {
            "file": options.data.name,
            "sha256": outcomes.sha256,
            "split": options.split,
            "problems": len(outcomes.problems),
            "tokens": told.tokens,
            "notes": list(told.notes),
        },
        "seed": options.seed,
        "candidates": [asdict(candidate) for candidate in tuning.candidates],
        "table": tuning.table,
        "guarantee": None,
    }


def _guarantee(
    held: Guarantee, artifacts: "list[Artifact]", outcomes: Outcomes, options: argparse.Namespace
) -> dict[str, Any]:
    """What the file says of `min_success`; the gateway reads level and table."""
    seen = any(saw(artifact, outcomes.sha256, options.split) for artifact in artifacts)
    if seen:
        print(
            f"pika tune: the {options.split} problems chose or calibrated probes, so the guarantee holds only as far "
            "as these do not flatter themselves there: give it problems of its own (`pika rollouts --seed`)",
            file=sys.stderr,
        )
    return {
        "level": options.guarantee,
        "problems": len(outcomes.problems),
        "says": SAYS.format(level=options.guarantee),
        "problems_chose_probes": seen,
        "table": held,
    }


def _show(tuning: Tuning, arms: list[str]) -> None:
    table = Table(box=None, header_style="bold", title="Policies at the target, per query", padding=(0, 1, 0, 0))
    table.add_column("policy")
    for heading in ("knob", "predicted", "corrected", "measured [95%]", "USD", "saving"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in (*tuning.candidates, tuning.always_best):
        low, high = candidate.measured_interval
        always = candidate is tuning.always_best
        table.add_row(
            f"always {arms[tuning.best_arm]}" if always else candidate.policy,
            " ".join(f"{value:.3g}" for value in candidate.knobs.values()),
            f"{candidate.predicted_accuracy:.3f}",
            f"{candidate.accuracy:.3f}",
            f"{candidate.measured_accuracy:.3f} [{low:.3f}, {high:.3f}]",
            f"{candidate.cost_usd:.2e}",
            "" if always else f"{candidate.saving_vs_best:.1%}",
            style="bold green" if candidate is tuning.chosen else None,
        )
    Console().print(table)


def _show_spread(tuning: Tuning) -> None:
    """How far knobs, and with them accuracy and saving, would have come out otherwise on other problems."""
    title = f"Knobs over {RESAMPLES} resampled sets"
    table = Table(box=None, header_style="bold", title=title, padding=(0, 1, 0, 0))
    table.add_column("policy")
    for heading in ("knob [95%]", "accuracy ±", "saving ±"):
        table.add_column(heading, justify="right", no_wrap=True)
    for candidate in tuning.candidates:
        spread = candidate.spread
        if spread is not None:
            low, high = spread.knob
            accuracy, saving = f"{spread.accuracy_sd:.2%}", f"{spread.saving_sd:.2%}"
            table.add_row(candidate.policy, f"{low:.3g} to {high:.3g}", accuracy, saving)
    Console().print(table)
