"""`pika train`: read a probe model's activations and fit a calibrated probe per arm."""

import shlex
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from rich.console import Console
from rich.progress import TaskProgressColumn, TimeRemainingColumn

from offline.caches import cache_folder
from offline.evaluate import DataError
from offline.material import Plan, gather, plan
from offline.options import with_file
from offline.progress import bars
from offline.rollout_source import find_rollouts
from offline.train_options import join_ranges, train_parser
from offline.train_preview import preview
from offline.train_report import report
from offline.training_set import SPLITS, Sampled, TrainingSet, read_training_set
from offline.transfer import Transfer, measure_on, read_others
from probes.base import ProbeError
from probes.card import ProbeCard
from probes.hub_errors import HubAwayError
from probes.json_text import problems
from probes.statistics import LEAST_HELD_OUT
from server.config import ConfigError, Settings, load


def main(argv: list[str]) -> int:
    parser = train_parser()
    try:
        args = parser.parse_args(with_file(parser, join_ranges(argv)))
        settings = load(args.config)
        sampled = Sampled(args.k, args.temperature, args.max_len)
        data = read_training_set(find_rollouts(args.data), _arms(args, settings), sampled)
        command = shlex.join(["pika", "train", *map(_public, argv)])
        cache = args.cache or cache_folder("activations")
        planned = _plan(args, data)
        if args.dry_run:
            preview(data, planned, args.device, cache, args.out)
            return 0
        cards, transfer = _train(args, settings, data, planned, cache, command)
    except (ConfigError, DataError, ProbeError) as error:
        print(f"pika train: {error}", file=sys.stderr)
        return 1 if isinstance(error, HubAwayError) else 2
    except OSError as error:
        print(f"pika train: {error}", file=sys.stderr)
        return 1
    report(cards, transfer, args.out)
    return 0


def _public(word: str) -> str:
    """Of a path its name alone: cards are published."""
    path = Path(word)
    return path.name if path.is_absolute() or path.exists() else word


def _arms(args: Namespace, settings: Settings) -> list[str]:
    """Those that are asked for, each once, in CONFIG's order or the command's; else all that CONFIG does not give a
    constant.

    Raises:
        ConfigError: CONFIG has no such arm or model.
    """
    if args.model is not None:
        models = {name: settings.models[arm.model].model for name, arm in settings.arms.items()}
        found = [name for name, arm in settings.arms.items() if args.model in (name, arm.model, models[name])]
        if not found:
            raise ConfigError(f"{args.config} has no model {args.model!r}; it has {', '.join(settings.models)}")
        return found
    unknown = [name for name, arm in settings.arms.items() if arm.success_probability is None]
    arms = list(dict.fromkeys(args.arms or unknown or settings.arms))
    for arm in arms:
        if arm not in settings.arms:
            raise ConfigError(f"{args.config} has no arm {arm!r}; it has {', '.join(settings.arms)}")
    return arms


def _plan(args: Namespace, data: TrainingSet) -> Plan:
    """
    Raises:
        ProbeError: see `offline.material.plan`; or this kind of probe reads no next-token statistics.
    """
    if args.next_token and args.kind.kind != "mlp":
        raise ProbeError("--next-token is for --kind mlp: no other probe reads next-token probabilities")
    with Console(stderr=True).status(f"Tokenising {len(data.problems):,} prompts"):
        return plan(
            data.problems,
            args.kind,
            args.probe_model,
            layers=args.layers,
            positions=args.positions,
            next_token=args.next_token,
            dtype=args.dtype,
        )


def _train(
    args: Namespace, settings: Settings, data: TrainingSet, planned: Plan, cache: Path, command: str
) -> tuple[dict[str, ProbeCard], Transfer]:
    """The whole story: activations -> probes -> artifacts."""
    from offline.fit import finish, fit_arms, fit_baselines
    from offline.probe_card import make_card
    from probes.artifact import load_artifact, save_artifact

    seen = {text for text, split in zip(data.problems, data.split, strict=True) if split != "test"}
    others = read_others(args.test_on, [arm.name for arm in data.arms], seen)
    material = planned.material
    if planned.reading is not None:
        with _bar("activations", len(data.problems)) as advance:
            material = gather(planned, args.device, cache, advance)
    if material.statistics_site is not None and data.rows("validation").sum() < LEAST_HELD_OUT:
        print(
            f"pika train: no activation statistics, which need {LEAST_HELD_OUT} validation problems: prompts unlike "
            "the training ones will not be noticed",
            file=sys.stderr,
        )
    with _bar(f"fitting {args.kind.kind}", 1) as advance:
        fits = fit_arms(data, material.candidates, args.kind, args.label, args.seed, advance, args.layer_rule)
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
        "command": command,
    }
    cards: dict[str, ProbeCard] = {}
    for arm, one in zip(data.arms, fitted, strict=True):
        folder, request = args.out / arm.name, settings.arms[arm.name].request
        try:
            card = make_card(data, arm, request, one, args.label, material.renderer, training, folder)
        except ValidationError as error:
            raise ProbeError(f"the probe of arm {arm.name} can have no card: {problems(error)}") from error
        save_artifact(folder, card, one.fit.probe, one.beside)
        cards[arm.name] = card
    if not others:
        return cards, {}
    artifacts = {arm.name: load_artifact(args.out / arm.name) for arm in data.arms}
    transfer = measure_on(others, artifacts, args.device, args.seed)
    for arm_name, artifact in artifacts.items():
        # The last entry stays the one on its own test problems, beside which the baselines stand.
        metrics = [*(found[arm_name] for found in transfer.values()), *artifact.card.metrics]
        cards[arm_name] = artifact.card.model_copy(update={"metrics": metrics})
        save_artifact(args.out / arm_name, cards[arm_name], artifact.probe, artifact.beside)
    return cards, transfer


@contextmanager
def _bar(what: str, total: float) -> Iterator[Callable[[float], None]]:
    with bars(TaskProgressColumn(), TimeRemainingColumn()) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)
