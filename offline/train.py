"""`pika train`: harvest a probe model's activations and fit a calibrated `linear_eoi` probe per arm."""

import json
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from offline.evaluate import DataError
from offline.training_set import SPLITS, ArmRollouts, TrainingSet, read_training_set
from probes.base import ProbeError
from probes.card import Estimate, Label, Pass, ProbeCard, Target
from server.config import ConfigError, Settings, load

if TYPE_CHECKING:  # torch and transformers come with these
    from offline.activations import Harvest
    from offline.fit import Fitted
    from probes.prompt import Renderer

EXAMPLES = """examples:
  pika train pool.yaml --data rollouts.parquet --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes
  pika train offline/nano_pool/pool.yaml --data offline/nano_pool/rollouts.parquet \\
      --probe-model offline/nano_pool/nano-medium --label sample_is_correct --out offline/nano_pool/probes

Fits on the split train, chooses layer, position and alpha on validation, calibrates there, and reports on test.
Writes one folder per arm, for the arm's `probe:` in CONFIG to name.
"""
LIBRARIES = ("numpy", "scikit-learn", "tokenizers", "torch", "transformers")
RANGE = re.compile(r"(-?\d+)(?:\.\.(-?\d+))?")


def main(argv: list[str]) -> int:
    args = _parser().parse_args(_join_ranges(argv))
    try:
        settings = load(args.config)
        arms = list(dict.fromkeys(args.arms or settings.arms))
        for arm in arms:
            if arm not in settings.arms:
                raise ConfigError(f"{args.config} has no arm {arm!r}; it has {', '.join(settings.arms)}")
        data = read_training_set(args.data, arms)
        fitted = _train(args, settings, data)
    except (ConfigError, DataError, ProbeError) as error:
        print(f"pika train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pika train: {error}", file=sys.stderr)
        return 1
    _report(dict(zip(arms, fitted, strict=True)), args.out)
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
    parser.add_argument("--probe-model", required=True, metavar="FOLDER|ID", help="the small model that is read")
    parser.add_argument("--out", type=Path, required=True, help="where the probes go, a folder per arm")
    parser.add_argument("--arms", type=lambda text: text.split(","), help="a,b (default: all of CONFIG)")
    parser.add_argument("--layers", type=_numbers, help="to try: all (default), 2,3 or 0..5")
    parser.add_argument("--positions", type=_numbers, help="to try: -5..-1 or -2,-1 (default: all EOI tokens)")
    parser.add_argument(
        "--label",
        choices=get_args(Label),
        default="success_rate",
        help="default: success_rate; sample_is_correct (of each single sample) routes best on the nano pool",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda:N or auto (default)")
    parser.add_argument("--seed", type=int, default=0, help="of the intervals' bootstrap; the fit draws nothing")
    return parser


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


def _train(args: Namespace, settings: Settings, data: TrainingSet) -> "list[Fitted]":
    """The whole story: prompts -> activations -> probes -> artifacts."""
    from offline.fit import calibrate_and_measure, fit_arms
    from probes.artifact import save_artifact
    from probes.prompt import Renderer, new_pass
    from probes.source import resolve_model

    pass_ = new_pass(resolve_model(args.probe_model))
    renderer = Renderer(pass_)
    prompts = [renderer.render([{"role": "user", "content": problem}]).token_ids for problem in data.problems]
    harvest = _harvest(args, pass_, renderer, prompts)
    with _bar("fitting, layer by layer", len(harvest.layers)) as advance:
        probes = fit_arms(data, harvest, args.label, on_layer=lambda: advance(1))
    fitted = []
    lengths = [len(prompt) for prompt in prompts]
    with _bar("calibration, metrics, text baselines", len(probes)) as advance:
        for column, (probe, choice) in enumerate(probes):
            fitted.append(calibrate_and_measure(data, column, harvest, probe, choice, args.label, lengths, args.seed))
            advance(1)
    for arm, one in zip(data.arms, fitted, strict=True):
        folder = args.out / arm.name
        card = _card(args, settings, data, arm, one, renderer, harvest, folder)
        save_artifact(folder, card, one.probe)
    return fitted


def _harvest(args: Namespace, pass_: Pass, renderer: "Renderer", prompts: list[tuple[int, ...]]) -> "Harvest":
    from offline.activations import harvest
    from probes.engine.probe_model import n_layers

    shortest = min(map(len, prompts))
    last_layer = n_layers(pass_)
    layers = args.layers or list(range(last_layer + 1))
    if layers[0] < 0 or layers[-1] > last_layer:
        raise ProbeError(
            f"--layers {layers[0]}..{layers[-1]}: {pass_.probe_model} has layers 0, its embeddings, to {last_layer}"
        )
    positions = args.positions or list(range(-len(renderer.eoi_tokens), 0))
    if positions[-1] >= 0 or positions[0] < -shortest:
        raise ProbeError(
            f"--positions {positions[0]}..{positions[-1]}: they count from the prompt's end, from -1 down to "
            f"-{shortest}, the length of the shortest prompt"
        )
    with _bar(f"activations of {Path(args.probe_model).name}", len(prompts)) as advance:
        return harvest(pass_, prompts, layers, positions, args.device, advance)


def _card(
    args: Namespace,
    settings: Settings,
    data: TrainingSet,
    arm: ArmRollouts,
    fitted: "Fitted",
    renderer: "Renderer",
    harvest: "Harvest",
    folder: Path,
) -> ProbeCard:
    from probes.artifact import CONFIG, WEIGHTS
    from probes.prompt import CANARY_PROMPT

    regression = args.label == "success_rate"
    pass_ = renderer.pass_
    if Path(pass_.probe_model).is_dir():
        relative = os.path.relpath(pass_.probe_model, folder.resolve())
        pass_ = pass_.model_copy(update={"probe_model": Path(relative).as_posix()})
    return ProbeCard(
        kind=fitted.probe.kind,
        pass_=pass_,
        site=fitted.choice.site,
        d_model=len(fitted.probe.weight),
        canary_prompt=CANARY_PROMPT,
        canary_token_ids=renderer.tokenize(CANARY_PROMPT),
        target=Target(
            arm=arm.name,
            model=arm.model,
            request=settings.arms[arm.name].request,
            temperature=arm.temperature,
            max_tokens=arm.max_tokens,
            k=arm.k,
        ),
        label=args.label,
        benchmark=data.benchmark,
        calibration=fitted.calibration,
        metrics=[fitted.metrics],
        baselines=fitted.baselines,
        mean_tokens=arm.mean_tokens,
        training={
            "alpha": fitted.choice.alpha,
            "layers": list(harvest.layers),
            "positions": list(harvest.positions),
            "problems": {split: int(data.rows(split).sum()) for split in SPLITS},
            "rollouts_sha256": data.sha256,
            "seed": args.seed,
        },
        versions={library: version(library) for library in LIBRARIES},
        probe_name=f"{arm.name}--{data.benchmark}--{fitted.probe.kind}_probe--{args.label}--k{arm.k}-t{arm.temperature:g}",
        model_name=arm.model,
        dataset=data.benchmark,
        probe_type=f"{fitted.probe.kind}_probe",
        label_type=args.label,
        k=arm.k,
        temperature=arm.temperature,
        max_len=arm.max_tokens,
        best_layer_idx=fitted.choice.site.layer,
        best_position_value=fitted.choice.site.position,
        best_alpha=fitted.choice.alpha,
        task_type="regression" if regression else "classification",
        test_score=fitted.test_score,
        best_val_score=fitted.choice.score,
        files=[CONFIG, WEIGHTS],
        exported_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        yield lambda n: progress.advance(task, n)


def _report(fitted: "dict[str, Fitted]", out: Path) -> None:
    caption = "on test problems [95% interval]; length, TF-IDF: AUROC of text alone"
    table = Table(title="Probes", caption=caption, box=None, header_style="bold")
    table.add_column("arm")
    for heading in ("layer", "pos.", "AUROC", "ECE", "length", "TF-IDF"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, one in fitted.items():
        table.add_row(
            arm,
            str(one.choice.site.layer),
            str(one.choice.site.position),
            _with_interval(one.metrics.auroc),
            _with_interval(one.metrics.ece),
            *(_short(one.baselines[name].auroc.value) for name in ("length", "tfidf")),
        )
    Console().print(table)
    for arm, one in fitted.items():
        if not one.beats_length:
            print(f"{arm}: the probe is not surely better than the prompt's length alone", file=sys.stderr)
    result = {
        arm: {
            "folder": str(out / arm),
            **one.choice.site.model_dump(),
            "alpha": one.choice.alpha,
            "auroc": one.metrics.auroc.value,
            "ece": one.metrics.ece.value,
            "brier": one.metrics.brier.value,
            "spearman": one.metrics.spearman.value,
            "beats_length": one.beats_length,
        }
        for arm, one in fitted.items()
    }
    print(json.dumps({"arms": result}))


def _with_interval(estimate: Estimate) -> str:
    return f"{_short(estimate.value)} [{_short(estimate.low)}, {_short(estimate.high)}]"


def _short(share: float) -> str:
    return f"{share:.3f}".removeprefix("0")
