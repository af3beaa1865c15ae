"""A file of keys, as `pika keys add` writes it, and what a client sends."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from server.keys.file import Entry, add_key, remove_key


def new_key(file: Path, name: str, **fields: Any) -> dict[str, str]:
    """Add one; returns the headers of its requests."""
    key = f"pika-key-of-{name}"
    add_key(file, name, Entry(sha256=sha256(key.encode()).hexdigest(), **fields))
    return {"authorization": f"Bearer {key}"}


def revoke(file: Path, name: str) -> None:
    remove_key(file, name)
