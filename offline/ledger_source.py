"""The ledger that a command is told to read: a gateway's configuration names it, or its URL does."""

from pathlib import Path

from server.config import ConfigError, load
from server.ledger.database import Database, LedgerError, open_database, parse_url


def ledger_of(source: str) -> Database:
    """An existing ledger's database, to be closed by the caller.

    Args:
        source: a YAML file, `sqlite:///FILE` or `postgresql://USER@HOST/DATABASE`.

    Raises:
        ConfigError: the file cannot be read, or configures no ledger.
        LedgerError: there is no such ledger, or it cannot be opened.
    """
    url = source if "://" in source else load(source).ledger_url
    if url is None:
        raise ConfigError(f"{source} configures no ledger: `ledger: {{}}` has the gateway keep one from then on")
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file():
        raise LedgerError(f"there is no ledger at {parsed.database}: has a gateway written there yet?")
    return open_database(url)
