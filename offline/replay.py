"""`pika replay`: what other policies would have done with the requests that a gateway has recorded in its ledger."""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from offline.evaluate import DataError
from offline.ledger_source import is_config, ledger_of
from offline.pool_file import read_prices
from offline.progress import bars
from offline.replay_plan import (
    Asked,
    ReplayError,
    configured,
    only_own,
    parse_policy,
    parse_sweep,
    parse_time,
    unique,
)
from offline.replay_report import Found, Row, notes, tables, to_json, write_plot
from offline.replay_traffic import Traffic, read_traffic
from routing_policies.base import PolicyError, build
from routing_policies.replay import always, as_it_was, replay
from server.config import ConfigError, load, read_yaml
from server.ledger.database import LedgerError
from server.sections.pool import Prices

EXAMPLES = """examples:
  pika replay --ledger pool.yaml                                   the configured policy as it stands now, and each arm
  pika replay --ledger pool.yaml --since 7d --policy "utility lambda=0.2,0.4,1.0" --policy "cascade thresholds=0.7"
  pika replay --ledger pool.yaml --sweep lambda --plot frontier.png
  pika replay --ledger postgresql://pika@db/pika --policy max_success --json
  pika replay --ledger pool.yaml --prices new-prices.yaml          at other prices: {ARM: {input: USD, output: USD}}

An answer that stays with its arm costs what it cost; one that moves costs what was expected, times what answers of that
arm have cost over what was expected of them. Sessions, pins and audits are not replayed: the policy chooses anew for
each request, among the arms that could serve it.
"""


def main(argv: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        found = _run(options)
        if options.plot is not None:
            write_plot(found, options.plot)
    except (ConfigError, DataError, LedgerError, PolicyError, ReplayError) as error:
        print(f"pika replay: {error}", file=sys.stderr)
        return 1 if isinstance(error, LedgerError) else 2
    except OSError as error:
        print(f"pika replay: cannot write {options.plot}: {error.strerror}; choose another --plot", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(to_json(found)))
        return 0
    console = Console()
    for table in tables(found):
        console.print(table)
        console.print()
    for note in notes(found):
        print(f"- {note}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika replay",
        description="What other policies would have done with recorded requests: cost, accuracy, and who gets what.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--ledger", required=True, metavar="CONFIG|URL", help="the pool's YAML file, or the ledger's file or URL"
    )
    parser.add_argument("--since", metavar="WHEN", help="7d, 24h, 90m, or a date such as 2026-11-01 (default: all)")
    parser.add_argument("--until", metavar="WHEN", help="the same; requests before it (default: now)")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="'NAME KNOB=VALUE'",
        help="a policy to try, may be given often; commas between values try each, but for thresholds (one per step)",
    )
    parser.add_argument("--sweep", metavar="KNOB", help="lambda, thresholds, min_success or accuracy; KNOB=0,0.5,1 too")
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="a pool's YAML file, or {ARM: {input: USD, output: USD}} per million tokens (default: as recorded)",
    )
    parser.add_argument("--pool", type=int, metavar="ID", help="of an earlier pool in the ledger (default: the newest)")
    parser.add_argument("--plot", type=_picture, metavar="FILE", help="draw cost against accuracy: .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print one line of JSON in place of tables")
    return parser


def _picture(text: str) -> Path:
    if Path(text).suffix.lower() not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no picture's name: it ends in .png, .svg or .pdf")
    return Path(text)


def _run(options: argparse.Namespace) -> Found:
    now_on = configured(load(options.ledger)) if is_config(options.ledger) else None
    given: Mapping[str, Any] = {} if now_on is None else now_on.knobs
    wanted = list(unique([asked for text in options.policy for asked in parse_policy(text, given)]))
    now = time.time()
    since, until = (None if text is None else parse_time(text, now) for text in (options.since, options.until))
    prices = None if options.prices is None else _prices(options.prices)
    traffic, ledger = _read(options.ledger, options.pool, since, until, prices)
    if now_on is not None and not options.policy:
        wanted = [only_own(now_on)]
    swept: list[Asked] = []
    if options.sweep is not None:
        swept = parse_sweep(options.sweep, given, traffic.record.success, traffic.tier_cost)
    with bars(transient=True) as progress:
        task = progress.add_task("Replaying", total=len(wanted) + len(swept))

        def row(asked: Asked, label: str = "") -> Row:
            policy = build(asked.policy, asked.knobs, traffic.tier_cost)
            result = Row(label or str(asked), replay(traffic.record, policy), asked=asked)
            progress.advance(task)
            return result

        return Found(
            ledger=ledger,
            traffic=traffic,
            was=Row("as it was", as_it_was(traffic.record)),
            what_if=[row(asked, f"{asked} (configured)" * (not options.policy)) for asked in wanted],
            always=[Row(f"always {arm}", always(traffic.record, i), arm=arm) for i, arm in enumerate(traffic.arms)],
            best=traffic.record.best,
            sweep=[row(asked) for asked in swept],
        )


def _read(
    source: str, pool: int | None, since: float | None, until: float | None, prices: Mapping[str, Prices] | None
) -> tuple[Traffic, str]:
    """The requests, and what the ledger is called, without a password."""
    database = ledger_of(source)
    try:
        with bars("{task.completed:,}", transient=True) as progress:
            task = progress.add_task("Reading decisions", total=None)
            traffic = read_traffic(
                database,
                pool,
                since,
                until,
                prices,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        return traffic, str(database)
    finally:
        database.close()


def _prices(file: Path) -> dict[str, Prices]:
    """By arm, of a pool's configuration or of a file of prices alone.

    Raises:
        ConfigError: it is the former, and wrong.
        DataError: it is neither.
    """
    if "arms" not in read_yaml(file, "of prices by arm, or a pool's configuration"):
        return read_prices((), file)
    settings = load(file)
    return {name: settings.models[arm.model].usd_per_million_tokens for name, arm in settings.arms.items()}
