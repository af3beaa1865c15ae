"""Where things are kept that can be made or fetched again."""

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """Of one kind of things, under XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pika" / name
