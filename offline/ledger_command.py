"""`pika ledger export`: the decisions of a ledger, with what came of them, as a parquet file."""

import argparse
import sys
import time
from pathlib import Path

from rich.progress import MofNCompleteColumn, TimeRemainingColumn

from offline.evaluate import DataError
from offline.ledger_source import ledger_of
from offline.progress import bars
from offline.replay_plan import ReplayError, parse_time
from server.config import ConfigError
from server.ledger.database import LedgerError

EXAMPLES = """examples:
  pika ledger export decisions.parquet --ledger pool.yaml
  pika ledger export week.parquet --ledger sqlite:///pika-ledger.sqlite --since 7d
  pika ledger export november.parquet --ledger postgresql://pika@db/pika --since 2026-11-01 --until 2026-12-01

One row per decision, oldest first: who was chosen and why, tokens, cost and times, what was said of the answer
(outcome: 0 to 1, the mean over its sources). For each arm of any pool in the ledger: success_probability.ARM,
expected_cost_usd.ARM and allowed.ARM, null where it was not in the pool. The gateway may go on writing meanwhile.
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        return _export(options)
    except (ConfigError, DataError, LedgerError, ReplayError) as error:
        print(f"pika ledger export: {error}", file=sys.stderr)
        return 1 if isinstance(error, LedgerError) else 2
    except OSError as error:
        print(f"pika ledger export: cannot write {options.file}: {error.strerror or error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    about = "What a gateway keeps of its decisions."
    parser = argparse.ArgumentParser(prog="pika ledger", description=about, epilog=EXAMPLES, formatter_class=form)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "Write the decisions of a ledger, with what came of them, to a parquet file."
    export = commands.add_parser("export", help=about, description=about, epilog=EXAMPLES, formatter_class=form)
    export.add_argument("file", type=Path, metavar="FILE.parquet", help="is written whole or stays as it was")
    export.add_argument(
        "--ledger", required=True, metavar="CONFIG|URL", help="the pool's YAML file, or the ledger's URL"
    )
    export.add_argument("--since", metavar="WHEN", help="7d, 24h, 90m, or a date such as 2026-11-01 (default: all)")
    export.add_argument("--until", metavar="WHEN", help="the same; decisions before it (default: now)")
    return parser


def _export(options: argparse.Namespace) -> int:
    if options.file.suffix.lower() != ".parquet":
        raise DataError(f"{options.file} must end in .parquet, the one form that is written")
    if not options.file.parent.is_dir():
        raise DataError(f"there is no folder {options.file.parent}: make it, or choose another FILE")
    now = time.time()
    since, until = (None if text is None else parse_time(text, now) for text in (options.since, options.until))
    from offline.ledger_export import export  # pyarrow: not for --help, nor to say what is wrong with an option

    database = ledger_of(options.ledger)
    try:
        with bars(MofNCompleteColumn(), TimeRemainingColumn(), transient=True) as progress:
            task = progress.add_task("Decisions", total=None)
            rows = export(
                database,
                options.file,
                since,
                until,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
    finally:
        database.close()
    print(f"{rows:,} decisions -> {options.file}")
    return 0
