"""A request goes only to arms that can take it, also where another fails."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest

from server.app import create_app
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, serving
from tests.support.gateway_client import chat
from tests.support.upstream import Handler, Upstream

TOOLS = [{"type": "function", "function": {"name": "f"}}]
IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}]}]
LONG = [{"role": "user", "content": "word " * 2000}]


@contextmanager
def unequal(large: Handler) -> Iterator[tuple[httpx.Client, Upstream]]:
    """`small` takes 300 tokens of text, `large` 4,096, images and tools; yields a client and small's upstream."""
    with ExitStack() as stack:
        small, other = (stack.enter_context(faults.running(one)) for one in (faults.answers, large))
        settings = constant_pool({"small": [small.url], "large": [other.url]})
        changes: dict[str, dict[str, Any]] = {
            "small": {"max_context_tokens": 300},
            "large": {"supports": ["tools", "images"]},
        }
        models = {name: model.model_copy(update=changes[name]) for name, model in settings.models.items()}
        base = stack.enter_context(serving(create_app(settings.model_copy(update={"models": models}))))
        yield stack.enter_context(httpx.Client(base_url=base, timeout=20)), small


NEEDS = [
    pytest.param({"tools": TOOLS}, id="tools"),
    pytest.param({"messages": IMAGE}, id="images"),
    pytest.param({"messages": LONG}, id="a long prompt"),
    pytest.param({"max_tokens": 1000}, id="a long answer"),
]


@pytest.mark.parametrize("needs", NEEDS)
def test_the_arm_that_can_takes_it(needs: dict[str, Any]) -> None:
    with unequal(faults.answers) as (client, _):
        assert chat(client, model="auto-min_cost").headers["x-pika-arm"] == "small"
        answer = chat(client, model="auto-min_cost", **needs)
        assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, "large")


@pytest.mark.parametrize("needs", NEEDS)
def test_nothing_falls_back_to_an_arm_that_cannot(needs: dict[str, Any]) -> None:
    with unequal(faults.drops_at_once) as (client, small):
        assert chat(client).headers["x-pika-path"] == "fallback"
        asked = len(small.requests)
        answer = chat(client, **needs)
        assert (answer.status_code, answer.headers["x-pika-arm"]) == (502, "large")
        assert len(small.requests) == asked


def test_an_estimate_refuses_nobody() -> None:
    with unequal(faults.answers) as (client, _):
        answer = chat(client, messages=[{"role": "user", "content": " " * 100_000}])
        assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, "large")
