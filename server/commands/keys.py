"""`pika keys`: users' keys, in the file that the gateway looks at every second."""

import argparse
import secrets
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from routing_policies.base import NAMES
from server.config import NAME, ConfigError, Settings, load
from server.keys.file import Entry, add_key, read_keys, remove_key

PREFIX = "pika-"
"""By which people, and scanners for secrets, know what it is."""
EXAMPLES = """\
examples:
  pika keys add team-a --config pool.yaml --arms small,large --requests-per-minute 600 --usd-per-day 5
  pika keys list --config pool.yaml
  pika keys revoke team-a --config pool.yaml

The configuration names the file: keys: {file: keys.yaml}. It holds no key, only their SHA-256: who loses
a key gets a new one. A running gateway follows the file within two seconds."""


def main(argv: list[str]) -> int:
    """`pika keys`; exit code 2 on wrong input."""
    parser = argparse.ArgumentParser(
        prog="pika keys",
        description="Keys that users send as `authorization: Bearer KEY`, and what each may do.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--config", type=Path, help="the YAML file of the pool, which names the file of keys")
    where.add_argument("--file", type=Path, help="the file of keys itself (default: as configured, else keys.yaml)")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add = commands.add_parser("add", parents=[where], help="make a key and print it, once")
    add.add_argument("name", metavar="NAME", help="what logs, metrics and the ledger call it")
    add.add_argument("--arms", type=_names, help="which it may use, joined by commas (default: all)")
    add.add_argument("--policies", type=_names, help="which requests may ask for (default: all)")
    add.add_argument("--policy", choices=NAMES, help="where a request asks for none (default: the configured one)")
    add.add_argument("--lambda", dest="lam", type=float, metavar="NUMBER", help="the same")
    add.add_argument("--min-success", type=float, metavar="P", help="the same")
    add.add_argument("--requests-per-minute", type=int, metavar="N")
    add.add_argument("--tokens-per-minute", type=int, metavar="N", help="of prompts and answers")
    add.add_argument("--usd-per-day", type=float, metavar="USD", help="from midnight to midnight, UTC; needs a ledger")
    add.add_argument("--usd-per-month", type=float, metavar="USD")
    commands.add_parser("list", parents=[where], help="names, limits and what they may use; never a key")
    revoke = commands.add_parser("revoke", parents=[where], help="have a key open nothing any more")
    revoke.add_argument("name", metavar="NAME")
    args = parser.parse_args(argv)
    try:
        file, settings = _file(args)
        if args.command == "add":
            _add(args, file, settings)
        elif args.command == "revoke":
            remove_key(file, args.name)
            print(f"{args.name} is revoked in {file}")
        else:
            _list(file)
    except ConfigError as error:
        print(f"pika: {error}", file=sys.stderr)
        return 2
    return 0


def _file(args: argparse.Namespace) -> tuple[Path, Settings | None]:
    """The file of keys, and the configuration where one is given.

    Raises:
        ConfigError: the configuration cannot be used, or names no such file.
    """
    if args.config is None:
        return args.file or Path("keys.yaml"), None
    settings = load(args.config)
    if args.file is not None:
        return args.file, settings
    if settings.keys is None:
        raise ConfigError(f"{args.config} asks for no keys: add `keys: {{file: keys.yaml}}`")
    return settings.resolve(settings.keys.file), settings


def _add(args: argparse.Namespace, file: Path, settings: Settings | None) -> None:
    if not NAME.fullmatch(args.name):
        raise ConfigError(f"{args.name!r}: names have up to 64 letters, digits, '.', '_' and '-'")
    if settings is not None:
        for arm in args.arms or ():
            if arm not in settings.arms:
                raise ConfigError(f"--arms names the unknown arm {arm!r}: choose of {', '.join(settings.arms)}")
    key = PREFIX + secrets.token_urlsafe(32)
    routing = {"policy": args.policy, "lambda": args.lam, "min_success": args.min_success}
    fields: dict[str, Any] = {
        "sha256": sha256(key.encode()).hexdigest(),
        "created": datetime.now(UTC).replace(microsecond=0),
        "arms": args.arms,
        "policies": args.policies,
        "routing": {name: value for name, value in routing.items() if value is not None},
        "requests_per_minute": args.requests_per_minute,
        "tokens_per_minute": args.tokens_per_minute,
        "usd_per_day": args.usd_per_day,
        "usd_per_month": args.usd_per_month,
    }
    try:
        entry = Entry(**fields)
    except ValidationError as error:
        [problem, *_] = error.errors()
        option = str(problem["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{option}: {problem['msg']}") from None
    if entry.budgets_usd and settings is not None and settings.ledger is None:
        raise ConfigError(f"budgets are kept in the ledger: add `ledger: {{}}` to {args.config}")
    add_key(file, args.name, entry)
    print(f"key of {args.name}, which is shown this once; {file} holds its SHA-256:", file=sys.stderr)
    print(key)


def _list(file: Path) -> None:
    columns = ("name", "created", "arms", "policies", "requests/min", "tokens/min", "USD/day", "USD/month", "routing")
    rows: list[tuple[str, ...]] = [columns]
    for name, located in read_keys(file).items():
        one = located.entry
        created = "" if one.created is None else one.created.strftime("%Y-%m-%d")
        limits = (one.requests_per_minute, one.tokens_per_minute, one.usd_per_day, one.usd_per_month)
        rows.append(
            (
                name,
                created,
                "all" if one.arms is None else ",".join(one.arms),
                "all" if one.policies is None else ",".join(one.policies) or "none",
                *(
                    "-" if limit is None else f"{limit:g}" if isinstance(limit, float) else str(limit)
                    for limit in limits
                ),
                ",".join(f"{knob}={value}" for knob, value in one.routing.items()) or "-",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
