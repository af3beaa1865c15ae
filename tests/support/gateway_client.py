"""A gateway over upstreams of given behaviour, and what is asked of it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx

from server.app import create_app
from server.config import Settings
from server.sections.pool import ArmLimits
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.upstream import Handler, Upstream

PATH = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "How much is 1 + 1?"}]
# A pool of connections with a limit closes some that another thread has just been given.
FOR_THREADS = httpx.Limits()


@contextmanager
def gateway(
    handlers: dict[str, list[Handler]], arm_limits: dict[str, float] | None = None, **sections: Any
) -> Iterator[tuple[httpx.Client, list[Upstream]]]:
    """A gateway over one upstream per handler; yields a client and the upstreams in order.

    Args:
        arm_limits: every arm's own `limits`.
    """
    with ExitStack() as stack:
        upstreams: list[Upstream] = []
        urls: dict[str, list[str]] = {}
        for name, behaviours in handlers.items():
            running = [stack.enter_context(faults.running(one)) for one in behaviours]
            upstreams += running
            urls[name] = [one.url for one in running]
        settings = constant_pool(urls, **sections)
        if arm_limits is not None:
            settings = with_arm_limits(settings, **arm_limits)
        base = stack.enter_context(serving(create_app(settings)))
        yield stack.enter_context(httpx.Client(base_url=base, timeout=20, limits=FOR_THREADS)), upstreams


def with_arm_limits(settings: Settings, **limits: float) -> Settings:
    """Every arm with such `limits` of its own."""
    own = ArmLimits(**limits)
    arms = {name: arm.model_copy(update={"limits": own}) for name, arm in settings.arms.items()}
    return settings.model_copy(update={"arms": arms})


def chat(client: httpx.Client, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"model": "auto", "messages": MESSAGES, **fields}
    return client.post(PATH, json=body, headers=headers)


def metric(client: httpx.Client, series: str) -> float:
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))
