"""`pika train`: read a probe model's activations and fit a calibrated probe per arm."""

import json
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from offline.evaluate import DataError
from offline.metrics import with_interval
from offline.training_set import SPLITS, TrainingSet, read_training_set
from probes.base import KINDS, Probe, ProbeError
from probes.base import load as load_kind
from probes.card import Label, ProbeCard
from probes.json_text import problems
from probes.statistics import LEAST_HELD_OUT
from server.config import ConfigError, Settings, load

EXAMPLES = """examples:
  pika train pool.yaml --data rollouts.parquet --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes
  pika train pool.yaml --data rollouts.parquet --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes --arms new-arm
  pika train pool.yaml --data rollouts.parquet --kind tfidf --out probes
  pika train offline/nano_pool/pool.yaml --data offline/nano_pool/rollouts.parquet --kind mlp --next-token \\
      --probe-model offline/nano_pool/nano-medium --label sample_is_correct --out offline/nano_pool/probes

Fits on the split train, chooses layer and position on validation, calibrates there on what chose nothing, and reports
on test. Writes one folder per arm, for the arm's `probe:` in CONFIG to name; other arms' folders stay as they are.
Activations are kept, so that another arm, or another kind of probe that reads the same ones (as linear_eoi and mlp do),
needs no new pass. Kinds that read all of a prompt's tokens keep them at every layer: --layers says at which instead.
"""
RANGE = re.compile(r"(-?\d{1,6})(?:\.\.(-?\d{1,6}))?")
"""No model has so many layers, and no prompt so many tokens, that more digits would be none of a slip."""


def main(argv: list[str]) -> int:
    args = _parser().parse_args(_join_ranges(argv))
    try:
        settings = load(args.config)
        arms = list(dict.fromkeys(args.arms or settings.arms))
        for arm in arms:
            if arm not in settings.arms:
                raise ConfigError(f"{args.config} has no arm {arm!r}; it has {', '.join(settings.arms)}")
        data = read_training_set(args.data, arms)
        cards = _train(args, settings, data)
    except (ConfigError, DataError, ProbeError) as error:
        print(f"pika train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pika train: {error}", file=sys.stderr)
        return 1
    _report(dict(zip(arms, cards, strict=True)), args.out)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika train",
        description="Fit and calibrate a probe per arm, from rollouts.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="the pool's YAML file")
    parser.add_argument("--data", type=Path, required=True, help="parquet that `pika rollouts` wrote")
    parser.add_argument(
        "--probe-model", metavar="FOLDER|ID", help="the small model that is read (needed but for --kind tfidf)"
    )
    parser.add_argument("--out", type=Path, required=True, help="where the probes go, a folder per arm")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="a,b (default: all of CONFIG)")
    parser.add_argument(
        "--kind", default="linear_eoi", type=_kind, metavar="KIND", help=f"of {', '.join(KINDS)} (default: linear_eoi)"
    )
    parser.add_argument("--layers", type=_numbers, help="to try: all (default), 2,3 or 0..5")
    parser.add_argument("--positions", type=_numbers, help="to try: -5..-1 or -2,-1 (default: all EOI tokens)")
    parser.add_argument(
        "--next-token",
        action="store_true",
        help="mlp reads the probe model's next-token probabilities too: full depth, and much better where the pool's "
        "models answer at once",
    )
    parser.add_argument(
        "--label",
        choices=get_args(Label),
        default="success_rate",
        help="default: success_rate; sample_is_correct (of each single sample) routes best on the nano pool",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda:N or auto (default)")
    parser.add_argument("--cache", type=Path, help="where activations are kept (default: ~/.cache/pika/activations)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn: equal seeds give equal probes")
    return parser


def _kind(text: str) -> type[Probe]:
    try:
        return load_kind(text)
    except ProbeError as error:
        raise ArgumentTypeError(str(error)) from None


def _join_ranges(argv: list[str]) -> list[str]:
    """`--positions -5..-1` as one word: argparse takes a word that begins with a dash for an option."""
    joined = list(argv)
    for option in ("--layers", "--positions"):
        if option in joined[:-1]:
            at = joined.index(option)
            joined[at : at + 2] = [f"{option}={joined[at + 1]}"]
    return joined


def _numbers(text: str) -> list[int] | None:
    """`2,3` or `0..5`, ascending; None for `all`."""
    if text == "all":
        return None
    numbers: set[int] = set()
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        if match is None or not (found := range(int(match[1]), int(match[2] or match[1]) + 1)):
            raise ArgumentTypeError(f"{part!r} is neither a number nor an ascending range such as 0..5")
        numbers.update(found)
    return sorted(numbers)


def _train(args: Namespace, settings: Settings, data: TrainingSet) -> list[ProbeCard]:
    """The whole story: prompts -> activations -> probes -> artifacts."""
    from offline.activations import default_cache
    from offline.fit import finish, fit_arms, fit_baselines
    from offline.material import gather
    from offline.probe_card import make_card
    from probes.artifact import save_artifact

    if args.next_token and args.kind.kind != "mlp":
        raise ProbeError("--next-token is for --kind mlp: no other probe reads next-token probabilities")
    with _bar("prompts, activations", len(data.problems)) as advance:
        material = gather(
            data.problems,
            args.kind,
            args.probe_model,
            layers=args.layers,
            positions=args.positions,
            next_token=args.next_token,
            device=args.device,
            cache=args.cache or default_cache(),
            on_batch=advance,
        )
    if material.statistics_site is not None and data.rows("validation").sum() < LEAST_HELD_OUT:
        print(
            f"pika train: no activation statistics, which need {LEAST_HELD_OUT} validation problems: prompts unlike "
            "the training ones will not be noticed",
            file=sys.stderr,
        )
    with _bar(f"fitting {args.kind.kind}", 1) as advance:
        fits = fit_arms(data, material.candidates, args.kind, args.label, args.seed, advance)
    fitted = []
    with _bar("text baselines, calibration, metrics", len(fits) + 1) as advance:
        baselines = fit_baselines(data, material.inputs, args.seed)
        advance(1)
        for column, fit in enumerate(fits):
            fitted.append(finish(data, column, material, fit, baselines, args.label, args.seed))
            advance(1)
    training = {
        **material.tried,
        "problems": {split: int(data.rows(split).sum()) for split in SPLITS},
        "rollouts_sha256": data.sha256,
        "seed": args.seed,
    }
    cards = []
    for arm, one in zip(data.arms, fitted, strict=True):
        folder, request = args.out / arm.name, settings.arms[arm.name].request
        try:
            cards.append(make_card(data, arm, request, one, args.label, material.renderer, training, folder))
        except ValidationError as error:
            raise ProbeError(f"the probe of arm {arm.name} can have no card: {problems(error)}") from error
        save_artifact(folder, cards[-1], one.fit.probe, one.beside)
    return cards


@contextmanager
def _bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)


def _report(cards: dict[str, ProbeCard], out: Path) -> None:
    caption = "on test problems [95% interval]; length, TF-IDF: AUROC of text alone"
    table = Table(title="Probes", caption=caption, box=None, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for heading in ("layer", "pos.", "AUROC", "ECE", "length", "TF-IDF"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, card in cards.items():
        site, metrics = card.site, card.metrics[-1]
        table.add_row(
            arm,
            *(("", "") if site is None else (str(site.layer), "all" if site.position is None else str(site.position))),
            with_interval(metrics.auroc),
            with_interval(metrics.ece),
            *(f"{card.baselines[name].auroc.value:.3f}" for name in ("length", "tfidf")),
        )
    Console().print(table)
    result = {}
    for arm, card in cards.items():
        site = card.site
        result[arm] = {
            "folder": str(out / arm),
            "kind": card.kind,
            "layer": None if site is None else site.layer,
            "position": None if site is None else site.position,
            "alpha": card.best_alpha,
            "calibration": card.calibration.method,
            **{name: getattr(card.metrics[-1], name).value for name in ("auroc", "ece", "brier", "spearman")},
            "output_tokens_log_rmse": None if card.output_tokens is None else card.output_tokens.log_rmse,
            "beats_length": card.beats_length,
        }
        if not result[arm]["beats_length"]:
            print(f"{arm}: the probe is not surely better than the prompt's length alone", file=sys.stderr)
    print(json.dumps({"arms": result}))
