"""A gateway on the nano pool as a process, with a ledger that traffic has filled; and a browser."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from offline.benchmarks.base import load
from server.dashboard.totals import read_pools
from server.ledger.database import Database, open_database
from server.ledger.row import PoolRow
from tests.support import upstream as faults
from tests.support.filled_ledger import decided, write
from tests.support.gateway import write_pool
from tests.support.gateway_client import PATH
from tests.support.processes import until
from tests.support.serve import Served, served
from tests.support.upstream import Upstream

if TYPE_CHECKING:
    from playwright.sync_api import Page, Playwright

NANO = Path(__file__).parents[2] / "offline/nano_pool"
CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None or find_spec("playwright") is None,
    reason="Debian's package chromium, or playwright, is not installed",
)
ARMS = ["nano-small", "nano-medium", "nano-large"]
ROUTED = 12
"""Requests that really went through the gateway."""
RECORDED = 2000
"""Further decisions, of the hour before."""


def pool_file(folder: Path, url: str, **sections: Any) -> Path:
    """The nano pool's configuration, with one upstream for all of its models."""
    pool = yaml.safe_load((NANO / "pool.yaml").read_text())
    for name, model in pool["models"].items():
        model |= {"model": str(NANO / name), "replicas": [{"url": url}]}
    for arm in pool["arms"].values():
        arm["probe"] = str(NANO / arm["probe"])
    pool["policy"]["tuned"] = str(NANO / pool["policy"]["tuned"])
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump({**pool, **sections}, sort_keys=False))
    return file


@contextmanager
def dashboard(
    folder: Path, probed: bool, environment: Mapping[str, str] | None = None, **sections: Any
) -> Iterator[tuple[Served, Upstream]]:
    """
    Args:
        probed: the nano pool with its own probes; else arms of the same names with constants, which start sooner.
        sections: of the configuration; `ledger`, say.
    """
    with faults.running(faults.answers) as upstream:
        if probed:
            file = pool_file(folder, upstream.url, **sections)
        else:
            file = write_pool(folder, {arm: [upstream.url] for arm in ARMS}, **sections)
        with served(file, environment) as gateway:
            yield gateway, upstream


def fill(gateway: Served, url: str) -> Database:
    """Real requests through a gateway whose ledger this is, and many more decisions of the hour before."""
    problems = load("running_total").problems("test", ROUTED, 1)
    for problem in problems:
        body = {"model": "auto", "messages": [{"role": "user", "content": problem.problem}]}
        assert gateway.client.post(PATH, json=body).status_code == 200
    return add_past(url)


def add_past(url: str) -> Database:
    """Decisions and outcomes of the hour before, of the pool of a gateway whose ledger this is; the newest one, an
    audit's, has flags."""
    database = open_database(url)

    def newest() -> PoolRow | None:
        with database.read() as connection:
            return next(iter(read_pools(connection, [1]).values()), None)

    until(lambda: newest() is not None, 10, "the gateway has written its pool")
    pool = newest()
    assert pool is not None
    now = time.time()
    rows = list(decided(RECORDED, now - 2400, now - 60))
    rows[-1].flags = ["policy-changed", "truncated"]
    write(database, rows, answered=0.5, pool=pool)
    return database


@contextmanager
def opened(
    playwright: "Playwright", url: str, width: int = 1280, scheme: Any = "light", may_say: tuple[str, ...] = ()
) -> "Iterator[Page]":
    """The page in a browser of its own, Debian's Chromium without a window; nothing may stand in its console.

    Args:
        may_say: parts of what may.
    """
    browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.set_default_timeout(15_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(f"{url}/dashboard")
    try:
        yield page
    finally:
        browser.close()
    assert [one for one in said if not any(part in one for part in may_say)] == []
