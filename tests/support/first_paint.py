"""How soon the dashboard is painted: `python -m tests.support.first_paint`, from the repository's folder.

A gateway on the nano pool with a ledger of 2,000 decisions, on loopback; Debian's Chromium without a window, a browser
of its own for each load, so that nothing is cached. Prints JSON, milliseconds from the start of the navigation.
"""

import json
import sys
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from playwright.sync_api import sync_playwright

from tests.support.dashboard import dashboard, fill, opened

LOADS = 10
PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def main() -> None:
    """Prints every load's first paint, and when all figures were there."""
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        ledger = f"sqlite:///{folder}/ledger.sqlite"
        with dashboard(Path(folder), True, ledger={"url": ledger}) as (gateway, _):
            fill(gateway, ledger).close()
            painted, loaded = [], []
            for number in range(LOADS):
                with opened(playwright, str(gateway.client.base_url).rstrip("/")) as page:
                    page.wait_for_selector("body[data-loaded]")
                    loaded.append(page.evaluate("performance.now()"))
                    painted.append(page.evaluate(PAINT))
                print(f"{number + 1} of {LOADS}: {painted[-1]:.0f} ms", file=sys.stderr)
    found = {"first paint": painted, "all figures": loaded}
    print(json.dumps({what: {"median": median(ms), "most": max(ms), "each": ms} for what, ms in found.items()}))


if __name__ == "__main__":
    main()
