"""The ledger that a command is told to read: a gateway's configuration names it, or its URL does."""

from pathlib import Path

from server.config import ConfigError, load
from server.ledger.database import Database, LedgerError, open_database, parse_url

SQLITE = b"SQLite format 3\0"
"""How its files begin."""


def ledger_of(source: str) -> Database:
    """An existing ledger's database, to be closed by the caller.

    Args:
        source: a YAML file, the SQLite file itself, `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.

    Raises:
        ConfigError: the file cannot be read, or configures no ledger.
        LedgerError: there is no such ledger, or it cannot be opened.
    """
    given = source if "://" in source else f"sqlite:///{source}"
    url = load(source).ledger_url if is_config(source) else given
    if url is None:
        raise ConfigError(f"{source} configures no ledger: `ledger: {{}}` has the gateway keep one from then on")
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise LedgerError(f"there is no ledger at {parsed.database}: has a gateway written there yet?")
    return open_database(url)


def is_config(source: str) -> bool:
    """Whether it is none of a URL and a SQLite file."""
    if "://" in source:
        return False
    try:
        with Path(source).open("rb") as file:
            return file.read(len(SQLITE)) != SQLITE
    except OSError:  # to be told as one of a configuration
        return True
