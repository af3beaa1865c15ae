"""What `pika train` may be asked."""

import re
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from pathlib import Path
from typing import get_args

from probes.base import KINDS, Probe, ProbeError, load
from probes.card import Dtype, Label
from probes.selection import LayerRule

EXAMPLES = """examples:
  pika train pool.yaml --data rollouts.parquet --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes
  pika train pool.yaml --data rollouts.parquet --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes --arms new-arm
  pika train pool.yaml --data rollouts.parquet --kind tfidf --out probes --test-on other.parquet
  pika train pool.yaml --probe linear_eoi_probe --dataset me/my-rollouts --model qwen-1.5b --max-len 3000 --k 5 \\
      --temperature 0.7 --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes
  pika train pool.yaml --data rollouts.parquet --probe-model Qwen/Qwen2.5-1.5B-Instruct --out probes --dry-run
  pika train pool.yaml --options train.yaml --seed 1     (train.yaml: {kind: mlp, next-token: true, data: ...})
  pika train offline/nano_pool/pool.yaml --data offline/nano_pool/rollouts.parquet --kind mlp --next-token \\
      --probe-model offline/nano_pool/nano-medium --label sample_is_correct --out offline/nano_pool/probes

Fits on the split train, chooses layer and position on validation, calibrates there on what chose nothing, and reports
on test. Writes one folder per arm, for the arm's `probe:` in CONFIG to name; other arms' folders stay as they are.
Activations are kept, so that another arm, or another kind of probe that reads the same ones (as linear_eoi and mlp do),
needs no new pass; a run that was interrupted goes on in the middle of one. Kinds that read all of a prompt's tokens
keep them at every layer: --layers says at which instead.
"""
RANGE = re.compile(r"(-?\d{1,6})(?:\.\.(-?\d{1,6}))?")
"""No model has so many layers, and no prompt so many tokens, that more digits would be none of a slip."""


def train_parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="pika train",
        description="Fit and calibrate a probe per arm, from rollouts.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="the pool's YAML file")
    add("--options", type=Path, metavar="FILE.yaml", help="these options as a mapping; the command line wins")
    add(
        "--data", "--dataset", required=True, metavar="FILE|REPO", help="what `pika rollouts` wrote; or on the Hub, "
        "owner/name[@revision], as `pika data pull` takes it"
    )  # fmt: skip
    add("--probe-model", metavar="FOLDER|ID", help="the small model that is read (needed but for --kind tfidf)")
    add("--out", type=Path, required=True, help="where the probes go, a folder per arm")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--arms", type=lambda text: text.split(","), help="a,b (default: all of CONFIG but constants)")
    which.add_argument("--model", help="the arms of this model alone, by its name in CONFIG or on the Hub")
    add("--k", type=int, help="use rollouts of so many answers per problem alone")
    add("--temperature", type=float, help="use rollouts that were sampled at it alone")
    add("--max-len", "--max_len", type=int, metavar="TOKENS", help="use rollouts with this limit of tokens alone")
    add(
        "--kind", "--probe", default="linear_eoi", type=_kind, metavar="KIND",
        help=f"of {', '.join(KINDS)}, with or without _probe behind (default: linear_eoi)",
    )  # fmt: skip
    add("--layers", type=_numbers, help="to try: all (default), 2,3 or 0..5")
    add(
        "--layer-rule", choices=get_args(LayerRule), default="best",
        help="one-se: the shallowest layer within one standard error of the best on validation, for what depth costs "
        "(default: best)",
    )  # fmt: skip
    add("--positions", type=_numbers, help="to try: -5..-1 or -2,-1 (default: all EOI tokens)")
    add(
        "--next-token",
        action="store_true",
        help="mlp reads the probe model's next-token probabilities too: full depth, and much better where the pool's "
        "models answer at once",
    )
    add(
        "--label",
        choices=get_args(Label),
        default="success_rate",
        help="default: success_rate; sample_is_correct (of each single sample) routes best on the nano pool",
    )
    add(
        "--test-on", type=Path, action="append", default=[], metavar="FILE",
        help="rollouts of the same arms on other problems, to whose test split the probes are put too; repeatable",
    )  # fmt: skip
    add("--dtype", choices=get_args(Dtype), default="float32", help="of the probe model (default: float32)")
    add("--device", default="auto", help="cpu, cuda:N or auto (default)")
    add("--cache", type=Path, help="where activations are kept (default: ~/.cache/pika/activations)")
    add("--seed", type=int, default=0, help="of all that is drawn: equal seeds give equal probes")
    add(
        "--dry-run",
        action="store_true",
        help="print what would be read, what that takes and what is there already; write nothing",
    )
    return parser


def join_ranges(argv: list[str]) -> list[str]:
    """`--positions -5..-1` as one word: argparse takes a word that begins with a dash for an option."""
    joined = list(argv)
    for option in ("--layers", "--positions"):
        if option in joined[:-1]:
            at = joined.index(option)
            joined[at : at + 2] = [f"{option}={joined[at + 1]}"]
    return joined


def _kind(text: str) -> type[Probe]:
    try:
        return load(text)
    except ProbeError as error:
        raise ArgumentTypeError(str(error)) from None


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
