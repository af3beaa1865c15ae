"""Writes the reference pages of docs/ anew, after a change of the configuration or of the metrics.

python -m server.reference            writes them
python -m server.reference --check    exit code 1 where a page is not what the code says
"""

import argparse
import sys
from pathlib import Path

from server.reference import configuration, metrics

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = "python -m server.reference"


def pages() -> dict[Path, str]:
    """What each page is to hold, by its file.

    Raises:
        UndocumentedError: the code lacks what the page needs; the message says what to add.
    """
    return {
        DOCS / "configuration.md": configuration.page(DOCS / "pool.yaml"),
        DOCS / "metrics.md": metrics.page(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Write docs/configuration.md and docs/metrics.md anew.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a page is out of date")
    args = parser.parse_args(argv)
    stale = [file for file, text in pages().items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in stale:
        name = file.relative_to(DOCS.parent)
        if args.check:
            print(f"{name} is out of date: run {COMMAND}", file=sys.stderr)
        else:
            file.write_text(pages()[file], encoding="utf-8")
            print(f"{name} written")
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
