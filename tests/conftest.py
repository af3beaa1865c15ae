"""What several test files share."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from anyio.from_thread import start_blocking_portal

from probes import hub
from server.config import Settings, load
from server.launch.pool import launched
from tests.support import postgresql as postgresql_server
from tests.support.hub import Hub, running
from tests.support.postgresql import PostgreSql

collect_ignore = ["clients"]
"""They run in an environment of their own: make test-clients."""
POOL = Path(__file__).parents[1] / "offline/nano_pool/pool.yaml"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where processes share the tests, what takes longest comes first; short tests fill the gaps."""
    if hasattr(config, "workerinput"):
        long = {item.path for item in items if item.get_closest_marker("vllm") or item.get_closest_marker("slow")}
        items.sort(key=lambda item: (not asks_shared_servers(item.path), item.path not in long))


@pytest.hookimpl(optionalhook=True)  # pytest-xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Each process gets whole files, one of them all that ask the shared servers."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return "shared servers" if asks_shared_servers(config.rootpath / file) else file

    return Scheduling(config, log)


@cache
def asks_shared_servers(file: Path) -> bool:
    """The process that hands out the tests collects none, so the text tells."""
    return "vllm_pool" in file.read_text()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def loopback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A Hub that this process uses, with a cache of its own, and asks again without a pause."""
    with running() as there:
        there.use(monkeypatch, tmp_path / "home")
        monkeypatch.setattr(hub, "WAITS_S", (0.0, 0.0))
        yield there


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSql]:
    """One server for the whole session; each test has databases of its own."""
    if postgresql_server.MISSING is not None:
        pytest.skip(postgresql_server.MISSING)
    with postgresql_server.running() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.sqlite"
    server: PostgreSql = request.getfixturevalue("postgresql")
    return server.make(f"ledger_{uuid4().hex}")


@dataclass(frozen=True)
class VllmPool:
    """The nano pool's three models, each on a real vLLM server."""

    settings: Settings
    """Of pool.yaml, with the servers' URLs."""

    @property
    def urls(self) -> dict[str, str]:
        """Base URL by model name, ending in /v1."""
        return {name: str(model.replicas[0].url) for name, model in self.settings.models.items()}


@pytest.fixture(scope="session")
def vllm_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmPool]:
    """One pool for the whole session, without a C++ compiler: whoever kills servers starts victims of its own."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install")
    # On an event loop of its own, which runs between tests too.
    with start_blocking_portal("asyncio") as portal, pytest.MonkeyPatch.context() as environment:
        # As in the image, which has none. Nothing that was compiled before is found either.
        environment.setenv("CXX", "no-compiler")
        environment.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        with portal.wrap_async_context_manager(launched(load(POOL))) as settings:
            environment.undo()
            yield VllmPool(settings)
