"""What several test files share."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from server.config import Settings, load
from server.launch import launched

POOL = Path(__file__).parents[1] / "offline/nano_pool/pool.yaml"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of processes that share the tests (`-n 2`) each gets whole files, one of them all that ask the shared servers.

    What starts vLLM comes first: it takes longest, and the short tests fill the gaps.
    """
    if not config.getoption("loadgroup", False):  # which pytest-xdist sets in those processes
        return
    shared = {item.path for item in items if "vllm_pool" in getattr(item, "fixturenames", ())}
    real = {item.path for item in items if item.get_closest_marker("vllm")}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("vllm_pool" if item.path in shared else item.path.stem))
    items.sort(key=lambda item: (item.path not in shared, item.path not in real))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


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
def vllm_pool() -> Iterator[VllmPool]:
    """One pool for the whole session: whoever kills servers starts victims of its own."""
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed: make install")
    # On an event loop of its own, which runs between tests too.
    with (
        start_blocking_portal("asyncio") as portal,
        portal.wrap_async_context_manager(launched(load(POOL))) as settings,
    ):
        yield VllmPool(settings)
