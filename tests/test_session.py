"""Conversations stay on their arm and replica, and leave them only where the policy gains enough."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.routing.session import Sessions
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, nano_pool, serving, write_pool
from tests.support.gateway_client import FOR_THREADS, chat, gateway
from tests.support.processes import descendants
from tests.support.serve import served
from tests.support.upstream import Upstream

ARMS = ("small", "medium", "large")  # success .5, .7, .9
CHEAPEST = {"routing": {"policy": "min_cost"}}


def turns(first: str, n: int, last: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """A conversation that holds n answers and asks for another."""
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": first}]
    for turn in range(n):
        messages += [{"role": "assistant", "content": f"answer {turn}"}, {"role": "user", "content": "Go on."}]
    return messages if last is None else [*messages[:-1], last]


TOOL_RESULT = {"role": "tool", "tool_call_id": "1", "content": "42"}


@contextmanager
def sticky(margin: float = 0.5, **sections: Any) -> Iterator[httpx.Client]:
    """The policy takes the large arm, which gains .4 on the small one."""
    with gateway({name: [faults.answers] for name in ARMS}, session={"margin": margin}, **sections) as (client, _):
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with sticky() as client:
        yield client


def told(answer: httpx.Response) -> tuple[str, str]:
    assert answer.status_code == 200, answer.text
    return answer.headers["x-pika-arm"], answer.headers["x-pika-path"]


def test_a_conversation_stays_on_its_arm(client: httpx.Client) -> None:
    assert told(chat(client, messages=turns("One?", 0), **CHEAPEST)) == ("small", "routed")
    for n in (1, 2, 3):
        answer = chat(client, messages=turns("One?", n))
        assert told(answer) == ("small", "sticky")
        assert answer.headers["x-pika-policy-arm"] == "large"
    assert told(chat(client, messages=turns("Another?", 1))) == ("large", "routed")
    assert "x-pika-policy-arm" not in chat(client, messages=turns("Another?", 2)).headers


def test_streams_are_turns_too(client: httpx.Client) -> None:
    chat(client, messages=turns("Streamed?", 0), stream=True, **CHEAPEST)
    assert told(chat(client, messages=turns("Streamed?", 1), stream=True)) == ("small", "sticky")


def test_a_conversation_that_begins_anew_is_decided_anew(client: httpx.Client) -> None:
    chat(client, messages=turns("Again?", 0), **CHEAPEST)
    assert told(chat(client, messages=turns("Again?", 0))) == ("large", "routed")
    assert told(chat(client, messages=turns("Again?", 1))) == ("large", "sticky")


def test_a_session_id_tells_conversations_whatever_they_say(client: httpx.Client) -> None:
    chat(client, {"x-session-id": "a"}, **CHEAPEST)
    assert told(chat(client, {"x-session-id": "a"}, messages=turns("Other words", 0))) == ("small", "sticky")
    assert told(chat(client, {"x-session-id": "b"}, messages=turns("Other words", 0))) == ("large", "routed")
    assert told(chat(client, messages=turns("Other words", 1))) == ("large", "routed")


def test_the_upstream_gets_the_session_id_as_it_was_sent() -> None:
    with gateway({"a": [faults.answers]}, session={}) as (client, [upstream]):
        chat(client, {"x-session-id": "alice@example.org"})
        assert upstream.requests[0].headers["x-session-id"] == "alice@example.org"


@pytest.mark.parametrize(("margin", "arm", "path"), [(0.39, "large", "routed"), (0.41, "small", "sticky")])
def test_a_conversation_moves_where_the_gain_exceeds_the_margin(margin: float, arm: str, path: str) -> None:
    with sticky(margin) as client:
        chat(client, messages=turns("One?", 0), **CHEAPEST)
        assert told(chat(client, messages=turns("One?", 1))) == (arm, path)
        assert told(chat(client, messages=turns("One?", 2))) == (arm, "sticky")


def test_a_cost_weighs_in_the_gain() -> None:
    with sticky(0.05, policy={"name": "utility", "lambda": 0.36}) as client:  # large gains .4 - .36 of the cost range
        chat(client, messages=turns("One?", 0), **CHEAPEST)
        two = {"arms": ["small", "large"]}
        assert told(chat(client, messages=turns("One?", 1), routing=two)) == ("small", "sticky")


def test_tool_results_go_to_the_arm_that_asked() -> None:
    with sticky(0.0) as client:  # where all others go to the policy's choice
        chat(client, messages=turns("Tools?", 0), **CHEAPEST)
        for role in ("tool", "function"):
            messages = turns("Tools?", 1, TOOL_RESULT | {"role": role})
            assert told(chat(client, messages=messages)) == ("small", "sticky")
            assert told(chat(client, messages=messages, routing={"max_cost_usd": 0})) == ("small", "sticky")
        assert told(chat(client, messages=turns("Tools?", 2))) == ("large", "routed")


def test_after_an_audit_tools_results_go_to_its_arm_and_the_conversation_back() -> None:
    with sticky(audit={"share": 1}) as client:
        audited = set()
        for i in range(20):
            arm, path = told(chat(client, messages=turns(f"{i}?", 0), **CHEAPEST))
            assert path == "audit"
            audited.add(arm)
            assert told(chat(client, messages=turns(f"{i}?", 1, TOOL_RESULT))) == (arm, "sticky")
            shown = client.post("/route", json={"model": "auto", "messages": turns(f"{i}?", 2)}).json()
            assert (shown["arm"], shown["path"]) == ("small", "sticky")
            assert shown["conversation"]["last_arm"] == arm
    assert audited == set(ARMS)


def test_what_the_arm_cannot_serve_goes_elsewhere(client: httpx.Client) -> None:
    chat(client, messages=turns("Arms?", 0), **CHEAPEST)
    without = {"arms": ["medium", "large"]}
    assert told(chat(client, messages=turns("Arms?", 1), routing=without)) == ("large", "routed")
    assert told(chat(client, messages=turns("Arms?", 2, TOOL_RESULT), routing={"arms": ["medium"]}))[0] == "medium"


def test_pins_neither_follow_a_conversation_nor_move_it(client: httpx.Client) -> None:
    chat(client, messages=turns("Pins?", 0), **CHEAPEST)
    assert told(chat(client, messages=turns("Pins?", 1), model="medium")) == ("medium", "pinned")
    assert told(chat(client, messages=turns("Pins?", 2))) == ("small", "sticky")


def test_tool_results_of_a_pinned_turn_go_to_its_arm(client: httpx.Client) -> None:
    chat(client, messages=turns("Pin and tools?", 0), model="medium")
    assert told(chat(client, messages=turns("Pin and tools?", 1, TOOL_RESULT))) == ("medium", "sticky")
    assert told(chat(client, messages=turns("Only pins?", 0), model="medium")) == ("medium", "pinned")
    assert told(chat(client, messages=turns("Only pins?", 1))) == ("large", "routed")
    chat(client, messages=turns("Pin between?", 0), **CHEAPEST)
    chat(client, messages=turns("Pin between?", 1), model="medium")
    assert told(chat(client, messages=turns("Pin between?", 2, TOOL_RESULT))) == ("medium", "sticky")
    assert told(chat(client, messages=turns("Pin between?", 3))) == ("small", "sticky")


def test_what_falls_back_of_a_pinned_turn_gets_its_tools_results() -> None:
    with gateway({"a": [faults.fails_with(500)], "b": [faults.answers]}, session={"margin": 0.5}) as (client, _):
        pinned = chat(client, messages=turns("One?", 0), model="a", routing={"fallback": True})
        assert told(pinned) == ("b", "fallback")
        assert told(chat(client, messages=turns("One?", 1, TOOL_RESULT))) == ("b", "sticky")


def test_an_arm_that_fails_is_left_for_good() -> None:
    with gateway({"a": [faults.answers], "b": [faults.answers]}, session={"margin": 0.5}) as (client, [first, _]):
        chat(client, messages=turns("One?", 0), **CHEAPEST)
        first.handler = faults.fails_with(500)
        assert told(chat(client, messages=turns("One?", 1))) == ("b", "fallback")
        first.handler = faults.answers
        assert told(chat(client, messages=turns("One?", 2))) == ("b", "sticky")


def test_errors_are_no_turns() -> None:
    with gateway({"a": [faults.fails_with(400)], "b": [faults.answers]}, session={"margin": 0.5}) as (client, _):
        assert chat(client, messages=turns("One?", 0), **CHEAPEST).status_code == 400
        assert told(chat(client, messages=turns("One?", 1))) == ("b", "routed")


def test_a_conversation_stays_on_its_replica_until_it_fails() -> None:
    with gateway({"a": [faults.answers] * 3}, session={}) as (client, upstreams):
        for i in range(6):  # each next one to another replica, but for conversations that go on
            chat(client, messages=turns(f"{i}?", 0))
        chat(client, messages=turns("0?", 1))
        [own] = [one for one in upstreams if len(_asked(one, "0?")) == 2]
        for n in range(2, 8):
            chat(client, messages=turns("0?", n))
            chat(client, messages=turns(f"Between {n}?", 0))
        assert len(_asked(own, "0?")) == 8
        assert all(_asked(one, "?") for one in upstreams)
        own.handler = faults.drops_at_once
        assert chat(client, messages=turns("0?", 8)).headers["x-pika-attempts"] == "2"
        own.handler = faults.answers
        [new] = [one for one in upstreams if one is not own and _asked(one, "0?")]
        for n in range(9, 12):
            assert told(chat(client, messages=turns("0?", n))) == ("a", "sticky")
        assert len(_asked(new, "0?")) == 4


def _asked(upstream: Upstream, first: str) -> list[faults.Request]:
    return [request for request in upstream.requests if first in request.body["messages"][1]["content"]]


def test_nothing_is_remembered_unless_configured() -> None:
    with gateway({name: [faults.answers] for name in ARMS}) as (client, _):
        chat(client, messages=turns("One?", 0), **CHEAPEST)
        assert told(chat(client, messages=turns("One?", 1, TOOL_RESULT))) == ("large", "routed")


def test_texts_to_complete_are_no_conversations(client: httpx.Client) -> None:
    def complete(headers: dict[str, str], **fields: Any) -> tuple[str, str]:
        body = {"model": "auto", "prompt": "Once", **fields}
        return told(client.post("/v1/completions", json=body, headers=headers))

    for headers, second in (({}, ("large", "routed")), ({"x-session-id": "texts"}, ("small", "sticky"))):
        complete(headers, **CHEAPEST)
        assert complete(headers) == second
    assert told(chat(client, messages=[{"role": "user", "content": "Once"}, *turns("", 1)[2:]])) == ("large", "routed")


def test_route_tells_and_changes_nothing(client: httpx.Client) -> None:
    def shown(n: int, **fields: Any) -> dict[str, Any]:
        body = {"model": "auto", "messages": turns("Shown?", n), **fields}
        answer: dict[str, Any] = client.post("/route", json=body).raise_for_status().json()
        return answer

    shown(0, **CHEAPEST)
    assert shown(1)["conversation"] is None
    chat(client, messages=turns("Shown?", 0), **CHEAPEST)
    for _ in range(2):
        answer = shown(1)
        assert (answer["arm"], answer["policy_arm"], answer["path"]) == ("small", "large", "sticky")
        assert answer["conversation"]["arm"] == "small"
        assert shown(1, routing={"arms": ["medium"]})["arm"] == "medium"


@contextmanager
def remembering(sessions: Sessions) -> Iterator[httpx.Client]:
    with ExitStack() as stack:
        urls = {name: [stack.enter_context(faults.running(faults.answers)).url] for name in ARMS}
        app = create_app(constant_pool(urls, session={"margin": 0.5, "minutes": 30}))
        app.state.live.sessions = sessions
        url = stack.enter_context(serving(app))
        yield stack.enter_context(httpx.Client(base_url=url, timeout=20, limits=FOR_THREADS))


def test_conversations_are_forgotten_after_a_while() -> None:
    now = [1000.0]
    with remembering(Sessions(clock=lambda: now[0])) as client:
        chat(client, messages=turns("One?", 0), **CHEAPEST)
        now[0] += 29 * 60
        assert told(chat(client, messages=turns("One?", 1)))[1] == "sticky"
        now[0] += 29 * 60  # counted from the last turn
        assert told(chat(client, messages=turns("One?", 2)))[1] == "sticky"
        now[0] += 31 * 60
        assert told(chat(client, messages=turns("One?", 3))) == ("large", "routed")
        now[0] -= 24 * 3600  # a clock that is set back forgets nothing
        assert told(chat(client, messages=turns("One?", 4)))[1] == "sticky"


def test_a_thousand_conversations_at_once_each_on_its_arm() -> None:
    policies = ("min_cost", "max_success")
    with remembering(Sessions()) as client, ThreadPoolExecutor(16) as pool:

        def talk(i: int) -> set[str]:
            begun = chat(client, messages=turns(f"{i}?", 0), routing={"policy": policies[i % 2]})
            arms = [told(begun)[0], *(told(chat(client, messages=turns(f"{i}?", n)))[0] for n in (1, 2))]
            assert arms[0] == ("small", "large")[i % 2]
            return set(arms)

        assert all(len(arms) == 1 for arms in pool.map(talk, range(1000)))


def test_of_too_many_the_ones_longest_silent_are_forgotten() -> None:
    with remembering(Sessions(most=100)) as client:
        for i in range(150):
            chat(client, messages=turns(f"{i}?", 0), **CHEAPEST)
            chat(client, messages=turns("0?", 1))
        paths = [told(chat(client, messages=turns(f"{i}?", 1)))[1] for i in (0, 149, 60, 1, 20)]
        assert paths == ["sticky", "sticky", "sticky", "routed", "routed"]


def test_a_reload_keeps_conversations_and_forgets_arms_that_are_no_more(tmp_path: Path) -> None:
    with ExitStack() as stack:
        urls = {name: [stack.enter_context(faults.running(faults.answers)).url] for name in ARMS}
        sections: dict[str, Any] = {"session": {"margin": 0.5}}
        with served(write_pool(tmp_path, urls, **sections)) as running:
            client = running.client
            chat(client, messages=turns("One?", 0), **CHEAPEST)
            chat(client, messages=turns("Two?", 0), model="auto-max_success")
            write_pool(tmp_path, urls, limits={"total_s": 100}, **sections)
            running.hang_up("reloaded")
            assert told(chat(client, messages=turns("One?", 1))) == ("small", "sticky")
            del urls["small"]
            write_pool(tmp_path, urls, **sections)
            running.hang_up("reloaded")
            assert told(chat(client, messages=turns("One?", 2))) == ("large", "routed")
            assert told(chat(client, messages=turns("Two?", 1))) == ("large", "sticky")


def test_without_the_probe_engine_a_conversation_stays_where_it_is() -> None:
    before = descendants(os.getpid())
    with faults.running(faults.answers) as upstream:
        nano = nano_pool(upstream.url)
        engine = nano.engine.model_copy(update={"deadline_ms": 300.0, "when_unavailable": 503})
        settings = type(nano).model_validate(
            nano.model_dump(by_alias=True) | {"session": {}, "engine": engine.model_dump()}
        )
        settings._folder = nano._folder
        with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as client:
            arm, _ = told(chat(client, messages=turns("Begin with 2. Add 1.", 0)))
            [process] = descendants(os.getpid()) - before
            os.kill(process, signal.SIGSTOP)
            try:
                assert told(chat(client, messages=turns("Begin with 2. Add 1.", 1))) == (arm, "sticky")
                assert chat(client, messages=turns("Begin with 3. Add 1.", 1)).status_code == 503
            finally:
                os.kill(process, signal.SIGCONT)
