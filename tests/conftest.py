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
