"""`pika verify`: grades solutions on record anew, and says where the verifier disagrees with the verdicts on record.

Reads what `pika rollouts` writes, and foreign tables with a solution per row (`response`, `ground_truth`,
`is_correct`, and `model` if there are several).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeRemainingColumn
from rich.table import Table

from offline import disagreements
from offline.benchmarks import base as benchmarks
from offline.disagreements import Judged
from offline.evaluate import DataError, reading_parquet
from offline.options import positive
from offline.progress import Rate, bars
from offline.provenance import METADATA, noted, provenance
from offline.rollout_store import write
from offline.verifiers.base import VerifierError, names
from offline.verifiers.grading import Graded, grade_all, pass_at_k
from offline.whole_file import whole

ROLLOUTS = ("arm", "benchmark", "generated_solutions", "ground_truth", "correct")
FOREIGN = ("response", "ground_truth", "is_correct")
EXAMPLES = """examples:
  pika verify rollouts.parquet                                  the benchmark's own verifier
  pika verify gsm8k_six_models.parquet --verifier numeric       a table with response, ground_truth, is_correct
  pika verify rollouts.parquet --verifier math --out graded.parquet --report report.md
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        table = _read(options.file)
        rollouts = "generated_solutions" in table.column_names
        solutions, recorded = _solutions(table, rollouts)
        truths = _texts(table, "ground_truth")
        verifier = options.verifier or _of_benchmark(table, rollouts)
        graded = _graded(verifier, list(zip(solutions, truths, strict=True)), options.workers)
        judged = _judged(table, solutions, truths, recorded, graded)
        origin = provenance("verify", argv, None, [options.file]) | {"verifier": verifier}
    except (DataError, VerifierError) as error:
        print(f"pika verify: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pika verify: {error}; mend that and try again", file=sys.stderr)
        return 1
    title = f"{options.file.name} by the verifier `{verifier}`"
    try:
        if options.report is not None:
            text = disagreements.report(title, json.dumps(origin, indent=1), judged)
            with whole(options.report) as unfinished:
                unfinished.write_text(text, encoding="utf-8", errors="replace")
        if options.out is not None:
            write(options.out, _regraded(table, rollouts, graded, origin))
    except OSError as error:
        print(f"pika verify: cannot write: {error}; choose another --out or --report", file=sys.stderr)
        return 1
    _show(title, judged)
    total = disagreements.agreement(judged)
    summary = {
        "file": str(options.file),
        "verifier": verifier,
        **asdict(total),
        "disagree_of_right": total.of_right,
        "disagree_of_all": total.of_all,
        "given_up": sum(one.given_up for one in graded),
        "causes": {name: len(those) for name, those in disagreements.disagreements(judged).items()},
        "models": {
            model: asdict(one) | {"disagree_of_right": one.of_right, "disagree_of_all": one.of_all}
            for model, one in disagreements.by_model(judged).items()
        },
        "out": options.out and str(options.out),
        "report": options.report and str(options.report),
    }
    print(json.dumps(summary))
    return 0


def _read(file: Path) -> pa.Table:
    with reading_parquet(file, "one that `pika rollouts` wrote, or a table of answers"):
        table = pq.read_table(file)
    missing = {form: [name for name in form if name not in table.column_names] for form in (ROLLOUTS, FOREIGN)}
    if all(missing.values()):
        least = min(missing.values(), key=len)
        raise DataError(
            f"{file} lacks {', '.join(least)}: rollouts have {', '.join(ROLLOUTS)}; other tables {', '.join(FOREIGN)}"
        )
    if len(table) == 0:
        raise DataError(f"{file} has no rows: nothing to verify")
    return table


def _solutions(table: pa.Table, rollouts: bool) -> tuple[list[list[str]], list[list[bool]]]:
    """The solutions of each row, and the verdicts on record."""
    if not rollouts:
        solutions = [[text] for text in _texts(table, "response")]
        recorded = [[verdict] for verdict in table["is_correct"].to_pylist()]
    else:
        solutions, recorded = table["generated_solutions"].to_pylist(), table["correct"].to_pylist()
    for row, (texts, verdicts) in enumerate(zip(solutions, recorded, strict=True)):
        if not texts:
            raise DataError(
                f"row {row} has no solutions: such rollouts keep verdicts alone, and cannot be verified anew"
            )
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"row {row}: generated_solutions must be a list of texts")
        if not isinstance(verdicts, list) or not all(verdict in (True, False) for verdict in verdicts):
            raise DataError(f"row {row}: the verdicts on record must be true or false, not {verdicts!r}")
        if len(texts) != len(verdicts):
            raise DataError(f"row {row} has {len(texts)} solutions and {len(verdicts)} verdicts: give each one")
    return solutions, [[bool(verdict) for verdict in verdicts] for verdicts in recorded]


def _texts(table: pa.Table, column: str) -> list[str]:
    texts: list[str] = table[column].to_pylist()
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"{column} of row {row} is {text!r}: it must be a text")
    return texts


def _of_benchmark(table: pa.Table, rollouts: bool) -> str:
    there = sorted(set(map(str, table["benchmark"].to_pylist()))) if rollouts else []
    if len(there) == 1:
        # Unknown, or one that names its verifier only with its source.
        with suppress(benchmarks.BenchmarkError):
            return benchmarks.load(there[0]).verifier
    what = f"its benchmarks are {', '.join(there)}" if there else "the file names no benchmark"
    raise DataError(f"{what}: say how its answers are checked, with --verifier {'|'.join(names())}")


def _graded(verifier: str, items: Sequence[tuple[list[str], str]], workers: int | None) -> list[Graded]:
    with bars(MofNCompleteColumn(), Rate("{:.0f} rows/s"), TimeRemainingColumn()) as progress:
        task = progress.add_task("verifying", total=len(items))
        return grade_all(verifier, items, workers, lambda done: progress.update(task, advance=done))


def _judged(
    table: pa.Table,
    solutions: Sequence[list[str]],
    truths: Sequence[str],
    recorded: Sequence[list[bool]],
    graded: Sequence[Graded],
) -> list[Judged]:
    models = next((table[name].to_pylist() for name in ("arm", "model") if name in table.column_names), None)
    return [
        Judged(
            row,
            str(models[row]) if models else "all",
            solution,
            truths[row],
            verdict,
            answer,
            correct,
            gave_up=one.given_up > 0,
        )
        for row, one in enumerate(graded)
        for solution, verdict, answer, correct in zip(
            solutions[row], recorded[row], one.answers, one.correct, strict=True
        )
    ]


def _regraded(table: pa.Table, rollouts: bool, graded: Sequence[Graded], origin: dict[str, Any]) -> pa.Table:
    """The same rows with the new verdicts, and in their provenance who gave them."""
    if rollouts:
        columns: dict[str, list[Any]] = {
            "extracted_answers": [one.answers for one in graded],
            "correct": [one.correct for one in graded],
            "success_rate": [sum(one.correct) / len(one.correct) for one in graded],
            "pass_at_k": [pass_at_k(len(one.correct), sum(one.correct), len(one.correct)) for one in graded],
            "majority_vote_answer": [one.majority_vote_answer for one in graded],
            "majority_vote_is_correct": [one.majority_vote_is_correct for one in graded],
        }
    else:
        columns = {
            "extracted_answer": [one.answers[0] for one in graded],
            "is_correct": [one.correct[0] for one in graded],
        }
    for name, values in columns.items():
        if name in table.column_names:
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
        else:
            table = table.append_column(name, pa.array(values, pa.string()))
    metadata = table.schema.metadata or {}
    before = noted(metadata)
    now = before | {"verified": [*before.get("verified", []), origin]}
    return table.replace_schema_metadata(metadata | {METADATA: json.dumps(now, ensure_ascii=False).encode()})


def _show(title: str, judged: Sequence[Judged]) -> None:
    models = Table("model", title=title)
    for heading in ("solutions", "recorded right", "refused of them", "recorded wrong, accepted", "disagree"):
        models.add_column(heading, justify="right")
    for model, one in (disagreements.by_model(judged) | {"all": disagreements.agreement(judged)}).items():
        refused = f"{one.right_but_refused} ({one.of_right:.2%})"
        counts = (one.solutions, one.recorded_right, refused, one.wrong_but_accepted, f"{one.of_all:.2%}")
        models.add_row(model, *map(str, counts))
    causes = Table("cause", "what it means")
    causes.add_column("solutions", justify="right")
    found = disagreements.disagreements(judged)
    for name, those in found.items():
        causes.add_row(name, disagreements.CAUSES[name], str(len(those)))
    console = Console(stderr=True)
    console.print(models)
    if found:
        console.print(causes)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika verify",
        description="Grade solutions on record anew, and compare with the verdicts on record.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", metavar="FILE", type=Path, help="parquet: rollouts, or response/ground_truth/is_correct"
    )
    parser.add_argument("--verifier", metavar="NAME", help=f"{', '.join(names())}; default: the benchmark's")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the same rows with the new verdicts")
    parser.add_argument("--report", metavar="FILE", type=Path, help="write all disagreements, by cause, as Markdown")
    parser.add_argument("--workers", metavar="N", type=positive, help="processes of slow verifiers (default: cores)")
    return parser
