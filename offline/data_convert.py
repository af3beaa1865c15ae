"""`pika data convert`: other people's results as rollouts, and rollouts as the research project's files."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

from offline.evaluate import DataError, split_name
from offline.hub_cli import cell, parser, print_json, run
from offline.options import positive
from offline.provenance import noted, provenance
from offline.whole_file import write_whole

if TYPE_CHECKING:  # pyarrow comes with it
    from offline.conversion import Converted

OURS = {"arm", "problem_id", "extracted_answers"}
"""Columns that rollouts of ours have, and no other form."""
EXAMPLES = """\
  pika data convert answers.parquet --out rollouts.parquet --pool pool.yaml --price small=0.1/0.1 --price large=1/3
  pika data convert wide.csv --out rollouts.parquet --models gpt-4,mixtral --prices prices.yaml --seed 1
  pika data convert data/Qwen data/openai --out rollouts.parquet     the research project's success-rate files
  pika data convert rollouts.parquet --out data                      rollouts as such files

Correctness sets are tables (parquet, JSON lines, JSON, CSV) with a row per problem and model, or a row per problem and
a column per model. Columns are found by their usual names; --column says which is which where they have others.
"""


def convert(argv: list[str]) -> int:
    """`pika data convert`."""
    return run(_parser(), argv, lambda args: _convert(args, argv))


def _parser() -> ArgumentParser:
    arguments = parser(
        "data convert",
        "Success-rate files or a correctness set as one parquet file of rollouts, for `pika train`, `pika tune` and\n"
        "`pika evaluate`, with a pool's configuration; or rollouts as success-rate files.",
        EXAMPLES,
    )
    add = arguments.add_argument
    add("inputs", metavar="INPUT", type=Path, nargs="+", help="files of one form, or folders of success-rate files")
    add("--out", metavar="FILE.parquet|FOLDER", type=Path, required=True, help="rollouts, or success-rate files")
    add("--pool", metavar="FILE.yaml", type=Path, help="write a pool's configuration too, an arm per model")
    add("--price", metavar="MODEL=IN/OUT", action="append", default=[], help="USD per million tokens (repeatable)")
    add("--prices", metavar="FILE", type=Path, help="YAML or JSON: MODEL: {input: USD, output: USD}")
    add("--benchmark", metavar="NAME", help="what the problems are (default: the data's, or the file's name)")
    add("--split", metavar="NAME=SHARE,...", type=_shares, help="anew (default: train=.6,validation=.2,test=.2)")
    add("--keep-splits", action="store_true", help="the data's splits (the default for success-rate files)")
    add("--seed", type=int, default=0, help="of the new splits (default: 0)")
    add("--drop-incomplete", action="store_true", help="leave out problems that some model lacks")
    add("--column", metavar="ROLE=NAME", action="append", default=[], help="such as correct=passed; NAME none: ignored")
    add(
        "--models", metavar="A,B", type=lambda text: text.split(","), default=[], help="columns with a model's verdicts"
    )
    add("--threshold", metavar="SCORE", type=float, help="the least score of a right answer (default: .5)")
    add("--k", metavar="N", type=positive, help="the first N answers of each model to each problem (default: all)")
    add("--model", metavar="OWNER/NAME", help="whose success rates these are, where the files do not tell")
    add("--temperature", type=float, default=0.0, help="answers were sampled at, where the data does not tell")
    add("--max-tokens", type=positive, default=0, help="of an answer, where the data does not tell")
    add(
        "--output-tokens",
        metavar="[MODEL=]N",
        action="append",
        default=[],
        help="of answers whose text is not on record (default: 256)",
    )
    return arguments


def _shares(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[split_name(name)] = float(share)
        except ValueError:
            raise ArgumentTypeError(f"{part!r}: write NAME=SHARE, such as train=.6,validation=.2,test=.2") from None
    if not all(share > 0 for share in shares.values()) or abs(sum(shares.values()) - 1) > 1e-9:
        raise ArgumentTypeError(
            f"{text!r}: shares are greater than 0 and make 1, such as train=.6,validation=.2,test=.2"
        )
    return shares


def _convert(args: Namespace, argv: Sequence[str]) -> int:
    from offline.answer_table import read_table
    from offline.research_files import files_of, is_research

    for file in (args.out, args.pool):
        if file is not None and file.exists() and not file.is_dir():
            raise DataError(f"{file} exists: remove it, or name another")
    if args.split and args.keep_splits:
        raise DataError("--split makes splits anew, --keep-splits keeps the data's: give one of them")
    files = files_of(args.inputs)
    names = read_table(files[:1]).column_names
    if set(names) >= OURS:
        return _to_research(files, args, argv)
    if args.out.suffix != ".parquet":
        raise DataError(f"--out {args.out}: rollouts are one file, whose name ends in .parquet")
    return _to_rollouts(files, is_research(names), args, argv)


def _to_research(files: Sequence[Path], args: Namespace, argv: Sequence[str]) -> int:
    from offline.research_files import LOST, write_research
    from offline.rollout_dataset import read_rollouts

    if len(files) > 1 or args.out.suffix == ".parquet":
        raise DataError("these are rollouts already: one file of them, and --out FOLDER, give success-rate files")
    console = Console(stderr=True)
    with console.status("writing"):
        rollouts = read_rollouts(files[0])
        before = noted(rollouts.schema.metadata)
        kept = {name: before[name] for name in ("tokens", "notes") if name in before}
        written = write_research(rollouts, args.out, provenance("data convert", argv, None, files) | kept)
    table = Table(Column("file", overflow="fold"), "rows", box=None)
    for path, rows in written.items():
        table.add_row(cell(str(path)), f"{rows:,}")
    console.print(table)
    console.print(f"These files have no place for {LOST}: left out.", soft_wrap=True)
    print_json({"out": str(args.out), "files": {str(path): rows for path, rows in written.items()}})
    return 0


def _to_rollouts(files: Sequence[Path], research: bool, args: Namespace, argv: Sequence[str]) -> int:
    from offline import conversion, pool_file
    from offline.conversion_report import report
    from offline.rollout_store import costs, to_table, write

    shares = args.split or (None if research or args.keep_splits else conversion.SHARES)
    with Console(stderr=True).status("reading, writing"):
        converted, told = _read(files, research, args)
        converted = conversion.complete(converted, args.drop_incomplete)
        rows = converted.rows
        rows = conversion.splits_of_data(rows) if shares is None else conversion.split_anew(rows, shares, args.seed)
        prices = pool_file.read_prices(args.price, args.prices)
        if prices or args.pool or not research:  # success-rate files have costs of their own
            prices = pool_file.price_arms(prices, {row["arm"]: row["model"] for row in rows})
            rows = [{**row, **costs(prices[row["arm"]], row["input_tokens"], row["output_tokens"])} for row in rows]
        one_sided = conversion.one_sided(rows)
        origin = provenance("data convert", argv, args.seed, files) | {
            "splits": shares or "kept",
            "tokens": converted.tokens,
            "notes": list(converted.notes),
            "duplicates_removed": converted.duplicates_removed,
            "incomplete_dropped": converted.incomplete_dropped,
            **told,
        }
        for file in filter(None, (args.out, args.pool)):
            file.absolute().parent.mkdir(parents=True, exist_ok=True)
        if args.pool is not None:
            text = pool_file.pool_text(rows, prices, one_sided, args.pool.stem, converted.notes)
            write_whole(args.pool, text)
        write(args.out, to_table(rows, origin))
    summary = {"out": str(args.out), "pool": None if args.pool is None else str(args.pool)}
    print_json(summary | report(replace(converted, rows=rows), one_sided, told))
    return 0


def _read(files: Sequence[Path], research: bool, args: Namespace) -> "tuple[Converted, dict[str, Any]]":
    """Rows as the data has them, and which columns were taken for what."""
    from offline import conversion
    from offline.answer_table import read_answers, read_table
    from offline.pool_file import arm_names
    from offline.research_files import read_research

    sampled = conversion.Sampled(
        benchmark=args.benchmark or ("" if research else files[0].stem),
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        k=args.k,
        output_tokens=_output_tokens(args.output_tokens),
    )
    if research:
        return read_research(files, args.model, sampled), {}
    answers = read_answers(read_table(files), _pairs(args.column), args.models, args.threshold)
    told = {"columns": answers.used, "unused_columns": answers.unused}
    return conversion.rollouts(answers, arm_names(answers.models), sampled), told


def _pairs(texts: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        role, _, column = text.partition("=")
        if not role or not column:
            raise DataError(f"--column {text}: write ROLE=NAME, such as correct=passed")
        pairs[role] = column
    return pairs


def _output_tokens(texts: Sequence[str]) -> dict[str, int]:
    """By model; `""` stands for all others."""
    counts = {}
    for text in texts:
        model, _, count = text.rpartition("=")
        if not count.isdigit():
            raise DataError(f"--output-tokens {text}: write a number of tokens, or MODEL=N")
        counts[model] = int(count)
    return counts
