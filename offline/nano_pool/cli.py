"""`pika nano train`: the nano pool's language models, trained from nothing."""

import json
import shlex
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from offline.benchmarks.running_total import RunningTotal
from offline.nano_pool.recipe import RECIPES, Recipe

USAGE = """\
usage: pika nano train --out FOLDER [options]

`pika nano train --help` shows options and examples.
"""
EXAMPLES = """examples:
  pika nano train --out nano              all three: about a quarter of an hour on 2 cores
  pika nano train --out nano --quick      some steps of each, to see that it works: they learn to count hardly at all

Writes a folder per model, as Transformers and vLLM load it, with `training.json`: recipe, seed, steps, losses,
versions, time and accuracy. A model that is there already, of the same recipe and seed, is not trained again.
"""
QUICK_STEPS = 60
PROBLEMS = 1000
"""Validation problems that the accuracy is measured on."""


class UsageError(Exception):
    """Something else stands where a model should go; the message names the fix."""


def main(argv: list[str]) -> int:
    """`pika nano`; returns the exit code."""
    if argv[:1] != ["train"]:
        print(USAGE, file=sys.stdout if argv[:1] in (["-h"], ["--help"]) else sys.stderr)
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    args = _parser().parse_args(argv[1:])
    recipes = [_quick(recipe) for recipe in RECIPES] if args.quick else list(RECIPES)
    try:
        records = _train(recipes, args.out, args.seed, shlex.join(["pika", "nano", *argv]))
    except UsageError as error:
        print(f"pika nano train: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pika nano train: {error}", file=sys.stderr)
        return 1
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
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_STEPS} steps of each model")
    parser.add_argument("--seed", type=int, default=0, help="of problems and weights (default: 0)")
    return parser


def _quick(recipe: Recipe) -> Recipe:
    return replace(recipe, max_steps=QUICK_STEPS, decay_steps=QUICK_STEPS // 3)


def _train(recipes: list[Recipe], out: Path, seed: int, command: str) -> dict[str, dict[str, Any]]:
    """The records of all models, in the recipes' order."""
    from offline.nano_pool import model_folder
    from offline.nano_pool.tokenizer import train_tokenizer
    from offline.nano_pool.training import accuracy, train

    problems = [(p.problem, p.ground_truth) for p in RunningTotal().problems("validation", PROBLEMS, seed + 1)]
    records: dict[str, dict[str, Any]] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tokenizer = train_tokenizer(seed)
        for recipe in recipes:
            folder, task = out / recipe.name, progress.add_task(recipe.name, total=recipe.max_steps, note="")
            record = model_folder.read_record(folder)
            if record is None:

                def on_step(step: int, loss: float, task: TaskID = task) -> None:
                    progress.update(task, completed=step, note=f"step {step}, loss {loss:.2f}")

                start = None if recipe.begins_as is None else model_folder.load(out / recipe.begins_as)
                trained = train(recipe, tokenizer, seed, start, on_step)
                record = {
                    "command": command,
                    "parameters": trained.model.num_parameters(),
                    "accuracy": accuracy(trained.model, tokenizer, problems, seed),
                    **trained.record,
                }
                model_folder.save(folder, trained.model, tokenizer, record)
            elif (record.get("recipe"), record.get("seed")) != (asdict(recipe), seed):
                raise UsageError(f"{folder} holds a model of another recipe or seed: give another --out")
            progress.update(task, completed=recipe.max_steps, note=f"accuracy {record['accuracy']:.3f}")
            records[recipe.name] = record
    return records
