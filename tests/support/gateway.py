"""A real uvicorn server in a thread, and the smallest configurations that a gateway runs with."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from fastapi import FastAPI

from server.config import Settings, load
from server.http.connection import Connection
from server.sections.pool import Replica


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """Serve on a free port; yields the base URL."""
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, http=Connection, loop="uvloop", lifespan="on", log_level="warning")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RuntimeError("the gateway did not start; see the log above")
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        assert not thread.is_alive(), "the gateway did not stop"


def nano_pool(url: str) -> Settings:
    """The nano pool with its own probes, and one upstream for all of its models."""
    nano = load(Path(__file__).parents[2] / "offline/nano_pool/pool.yaml")
    replica = Replica(url=url)
    models = {name: model.model_copy(update={"replicas": [replica]}) for name, model in nano.models.items()}
    return nano.model_copy(update={"models": models})


def constant_pool(urls: dict[str, list[str]], **sections: Any) -> Settings:
    """Arms without probes: success .5, .7, .9 and prices rising tenfold, in the order given."""
    models, arms = {}, {}
    for i, (name, replicas) in enumerate(urls.items()):
        price = 0.1 * 10**i
        models[name] = {
            "model": f"owner/{name}",
            "max_context_tokens": 4096,
            "usd_per_million_tokens": {"input": price, "output": 4 * price},
            "replicas": [{"url": url} for url in replicas],
        }
        arms[name] = {
            "model": name,
            "success_probability": 0.5 + 0.2 * i,
            "mean_tokens": {"input": 10, "output": 20},
        }
    policy = {"name": "utility", "lambda": 0}
    return Settings.model_validate({"models": models, "arms": arms, "policy": policy, **sections})


def write_pool(folder: Path, urls: dict[str, list[str]], **sections: Any) -> Path:
    """The same as a file, for a gateway that is a process."""
    pool = constant_pool(urls, **sections).model_dump(mode="json", by_alias=True, exclude_none=True)
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump(pool, sort_keys=False))
    return file
