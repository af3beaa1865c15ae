"""The demo's pool with all that needs no secret, in a folder of its own: the pool's may be read-only."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AUDIT_SHARE = 0.05
SECTIONS = f"""
ledger: {{}}
session: {{}}
audit: {{share: {AUDIT_SHARE}}}
"""


@contextmanager
def with_ledger(pool: Path) -> Iterator[Path]:
    """A copy of the configuration with a ledger beside it, conversations and an audit; all are gone afterwards.

    What the configuration names by relative paths is linked to, so that the pool stays the one that was tuned.
    """
    with tempfile.TemporaryDirectory(prefix="pika-demo-") as temporary:
        folder = Path(temporary)
        for beside in pool.parent.iterdir():
            if beside != pool:
                (folder / beside.name).symlink_to(beside.absolute())
        copy = folder / pool.name
        copy.write_text(pool.read_text("utf-8") + SECTIONS, "utf-8")
        yield copy
