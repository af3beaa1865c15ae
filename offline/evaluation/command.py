"""`pika evaluate`: every policy, baseline, control and oracle on the same test problems, knobs from validation."""

import json
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from offline.caches import cache_folder
from offline.evaluate import DataError, split_name
from offline.evaluation.evaluation import TEXT, Ask, Known, evaluate
from offline.evaluation.known import validation
from offline.evaluation.policies import LABELS
from offline.evaluation.record import record
from offline.evaluation.results import to_table, write
from offline.evaluation.samples import Samples, check_leakage, read_samples
from offline.evaluation.shown import table
from offline.policy_search import Target
from probes.base import ProbeError
from probes.hub_errors import HubAwayError
from routing_policies.base import PolicyError
from server.config import ConfigError, Settings, load

WIDTH = 150
"""Columns that the table needs; a narrower terminal wraps its lines."""

if TYPE_CHECKING:
    from offline.evaluation.second_look import Looks
    from probes.artifact import Artifact

EXAMPLES = """examples:
  pika evaluate pool.yaml --data rollouts.parquet --out evaluation
  pika evaluate pool.yaml --data fresh.parquet --validation-data rollouts.parquet --out evaluation
  pika evaluate pool.yaml --data rollouts.parquet --methods utility,cascade --target accuracy=0.9

DIR/evaluation.json holds every figure with its interval, DIR/results.parquet every test problem with what each method
did; `pika report DIR` makes plots and tables of them. The last line is JSON: the verdict, and the figures of the policy
that `pika tune` would choose.
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        settings = load(options.config)
        test, chosen_on, train = _read(settings, options)
        from offline.label import load_probes  # torch: after all that can fail at once

        with _bar(len(options.methods) + len(TEXT) + 8) as on_step:
            on_step("probes")
            artifacts = load_probes(settings)
            on_step("scoring validation problems")
            before = Known(chosen_on, validation(settings, artifacts, chosen_on.outcomes))
            on_step("scoring test problems")
            now = Known(test, validation(settings, artifacts, test.outcomes))
            texts = [kind for kind in TEXT if not _all_are(artifacts, kind)]
            ask = Ask(options.target, options.methods, texts, options.seed, options.draws)
            on_step("looking at answers")
            looks = _looks(settings, options, train, before, now)
            found = evaluate(train, before, now, ask, looks, on_step)
            on_step("figures")
            result = record(settings, artifacts, found, before, now, options, argv)
    except (ConfigError, DataError, PolicyError, ProbeError) as error:
        print(f"pika evaluate: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    try:
        write(options.out, result, to_table(found, result["provenance"]))
    except OSError as error:
        print(f"pika evaluate: cannot write {options.out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 1
    console = Console(stderr=True)
    console.width = max(console.width, WIDTH)
    console.print(table(result))
    for note in result["notes"]:
        console.print(f"- {note}", highlight=False)
    console.print(result["verdict"]["sentence"], highlight=False, style="bold")
    print(json.dumps(_brief(result, options.out)))
    return 0


def _read(settings: Settings, options: Namespace) -> tuple[Samples, Samples, Samples | None]:
    """Test, validation and, where there are any, train problems.

    Raises:
        DataError: see `read_samples` and `check_leakage`.
    """
    test_split, validation_split = options.test_split, options.validation_split
    if options.validation_data is None:
        if test_split == validation_split:
            raise DataError(f"split {test_split!r} cannot both choose knobs and judge them: name two splits")
        found = read_samples(options.data, [test_split, validation_split], settings, ["train"])
        test = found[test_split]
        taken = {test_split, validation_split}
    else:
        found = read_samples(options.validation_data, [validation_split], settings, ["train"])
        test = read_samples(options.data, [test_split], settings)[test_split]
        taken = {validation_split}
    validation = found[validation_split]
    train = None if "train" in taken else found.get("train")
    used = {"train": train, "validation": validation, "test": test}
    check_leakage({name: samples for name, samples in used.items() if samples is not None})
    return test, validation, train


def _looks(
    settings: Settings, options: Namespace, train: Samples | None, validation: Known, test: Known
) -> "tuple[Looks, Looks] | None":
    """
    Raises:
        DataError: there is no such arm, or nothing to fit what looks at its answers on.
        ProbeError: see `offline.evaluation.looks.look`.
    """
    if options.look_at is None:
        return None
    if options.look_at not in settings.arms:
        raise DataError(f"--look-at {options.look_at}: there is no such arm; there are {', '.join(settings.arms)}")
    if train is None:
        raise DataError("--look-at needs train problems: give rollouts that have some as --validation-data")
    from offline.evaluation.looks import look

    chosen_on = options.validation_data or options.data
    arm = list(settings.arms).index(options.look_at)
    return look(
        (chosen_on, options.data),
        (train, validation.samples, test.samples),
        (validation.known.success[:, arm], test.known.success[:, arm]),
        (options.validation_split, options.test_split),
        arm,
        settings,
        options.seed,
        cache_folder("activations"),
    )


def _brief(result: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """The last line."""
    router = next(one for one in result["methods"] if one["name"] == result["verdict"]["method"])
    keys = ("name", "knob", "accuracy", "cost_usd", "accuracy_diff", "saving", "parity_saving", "limit_share")
    return {
        "out": str(out),
        "problems": result["data"]["problems"],
        "best_single": result["best_single"],
        **{key: router[key] for key in keys},
        "verdict": result["verdict"],
    }


def _all_are(artifacts: "Mapping[str, Artifact]", kind: str) -> bool:
    return bool(artifacts) and all(artifact.card.kind == kind for artifact in artifacts.values())


@contextmanager
def _bar(steps: int) -> Iterator[Callable[[str], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=steps, completed=-1)  # told of a step when it begins
        yield lambda what: progress.update(task, advance=1, description=what)
        progress.update(task, completed=steps, description="done")


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika evaluate",
        description="Every policy, baseline, control and oracle on the same test problems; knobs from validation.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="the pool's YAML file")
    parser.add_argument("--data", type=Path, required=True, metavar="FILE", help="rollouts with the test problems")
    parser.add_argument(
        "--validation-data",
        type=Path,
        metavar="FILE",
        help="rollouts whose validation problems choose knobs and whose train problems fit text probes "
        "(default: those of --data)",
    )
    parser.add_argument("--test-split", type=split_name, default="test", metavar="NAME", help="default: test")
    parser.add_argument("--validation-split", type=split_name, default="validation", metavar="NAME")
    parser.add_argument(
        "--target", type=_target, default="accuracy=always-best", help="accuracy=always-best | accuracy=0..1 | cost=USD"
    )
    parser.add_argument(
        "--methods",
        type=_methods,
        default=tuple(LABELS),
        metavar="A,B",
        help=f"policies, of {','.join(LABELS)} (default: all); baselines and controls always run",
    )
    parser.add_argument(
        "--look-at",
        metavar="ARM",
        help="also a cascade that looks at this arm's answer before it asks the best one; loads the arm's model",
    )
    parser.add_argument("--out", type=Path, default=Path("evaluation"), metavar="DIR", help="default: evaluation")
    parser.add_argument("--draws", type=_draws, default=1000, metavar="N", help="of the bootstrap (default: 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap, halvings and text probes (default: 0)")
    return parser


def _target(text: str) -> Target:
    try:
        return Target.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def _methods(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.split(",")))
    for name in names:
        if name not in LABELS:
            raise ArgumentTypeError(f"{name!r} is no policy here: choose of {','.join(LABELS)}")
    return names


def _draws(text: str) -> int:
    if not text.isdigit() or not 10 <= int(text) <= 100_000:
        raise ArgumentTypeError(f"{text!r} draws make no interval: a whole number from 10 to 100000")
    return int(text)
