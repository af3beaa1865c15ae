"""`pika nano train`: the nano pool's language models, trained from nothing."""

import json
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import TimeElapsedColumn

from offline.nano_pool.recipe import RECIPES, Recipe
from offline.nano_pool.trainers import Run, TrainingError, trainers
from offline.progress import bars

USAGE = """\
usage: pika nano train --out FOLDER [options]

examples:
  pika nano train --out nano --quick

`pika nano train --help` shows options and examples.
"""
EXAMPLES = """examples:
  pika nano train --out nano              all three: some three minutes on 2 cores
  pika nano train --out nano --quick      some steps of each, to see that it works: they learn to count hardly at all

Writes a folder per model, as Transformers and vLLM load it, with `training.json`: recipe, seed, steps, losses,
versions, time and accuracy. A model that is there already, of the same recipe and seed, is not trained again.
"""
QUICK_STEPS = 40
PROBLEMS, QUICK_PROBLEMS = 1000, 100
"""That accuracies are measured on. Models that hardly learnt never end an answer, which takes its time."""


def main(argv: list[str]) -> int:
    """`pika nano`; returns the exit code."""
    if argv[:1] != ["train"]:
        print(USAGE, file=sys.stdout if argv[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    args = _parser().parse_args(argv[1:])
    recipes = [_quick(recipe) for recipe in RECIPES] if args.quick else list(RECIPES)
    try:
        problems = QUICK_PROBLEMS if args.quick else PROBLEMS
        records = _train(recipes, Run(args.out, args.seed, shlex.join(["pika", "nano", *argv]), problems))
    except TrainingError as error:
        print(f"pika nano train: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\nstopped; models that are finished stay, and the same command goes on from there", file=sys.stderr)
        return 130
    brief = ("steps", "seconds", "accuracy", "parameters")
    models = {name: {key: record[key] for key in brief} for name, record in records.items()}
    print(json.dumps({"out": str(args.out), "models": models}))
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika nano train",
        description="Train the nano pool's three language models from nothing, on the CPU.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the models go")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"{QUICK_STEPS} steps of each model, asked {QUICK_PROBLEMS} problems instead of {PROBLEMS}",
    )
    parser.add_argument("--seed", type=int, default=0, help="of problems and weights (default: 0)")
    return parser


def _quick(recipe: Recipe) -> Recipe:
    return replace(recipe, max_steps=QUICK_STEPS, decay_steps=QUICK_STEPS // 3)


def _train(recipes: list[Recipe], run: Run) -> dict[str, dict[str, Any]]:
    """The records of all models, in the recipes' order. A model goes on from another in the same process."""
    first = [[recipe] for recipe in recipes if recipe.begins_as is None]
    chains = [[*one, *(r for r in recipes if r.begins_as == one[0].name)] for one in first]
    records: dict[str, dict[str, Any]] = {}
    with bars("{task.fields[note]}", TimeElapsedColumn()) as progress, trainers(chains, run) as said:
        tasks = {recipe.name: progress.add_task(recipe.name, total=recipe.max_steps, note="") for recipe in recipes}
        for name, step, what in said:
            if isinstance(what, dict):
                records[name] = what
            progress.update(
                tasks[name],
                completed=step,
                note=f"accuracy {what['accuracy']:.3f}" if isinstance(what, dict) else f"step {step}, loss {what:.2f}",
            )
    return {recipe.name: records[recipe.name] for recipe in recipes}
