"""Canary and shadow: another policy tried on a share of the traffic, or on all of it without acting on it."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import orjson
import pytest

from server.app import create_app
from server.chat_request import parse_chat
from server.commands.check import check
from server.config import ConfigError, load
from server.http.head import read_head
from server.live import Order, build
from server.metrics import Metrics
from server.routing.decide import decide
from server.routing.session import Sessions
from server.state import State
from tests.support import upstream as faults
from tests.support.gateway import constant_pool, nano_pool, serving, write_pool
from tests.support.gateway_client import MESSAGES, chat, gateway, metric
from tests.support.processes import descendants
from tests.support.upstream import USAGE
from tests.test_session import ARMS, TOOL_RESULT, told, turns

CANDIDATE = {"share": 0.3, "policy": {"name": "min_cost"}}  # small; the policy takes large


@contextmanager
def trying(**sections: Any) -> Iterator[httpx.Client]:
    with gateway({name: [faults.answers] for name in ARMS}, **sections) as (client, _):
        yield client


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with trying(canary=CANDIDATE) as client:
        yield client


def test_a_share_goes_by_the_candidate_and_both_groups_are_measured() -> None:
    with trying(canary=CANDIDATE) as client:
        for series in ("requests_total", "cost_usd_total", "expected_correct_total"):
            assert f"pika_canary_{series}{{" in client.get("/metrics").text
        n = 400
        answers = [chat(client, {"x-request-id": f"request-{i}"}) for i in range(n)]
        seen = Counter((*told(one), one.headers["x-pika-policy"]) for one in answers)
        tried = seen[("small", "canary", "min_cost")]
        assert seen == {("small", "canary", "min_cost"): tried, ("large", "routed", "utility"): n - tried}
        assert tried / n == pytest.approx(0.3, abs=0.07)
        cost = (11 * 0.1 + 7 * 0.4) / 1e6  # of a small answer; a large one is a hundred times dearer
        for group, requests, success, usd in (("canary", tried, 0.5, cost), ("control", n - tried, 0.9, 100 * cost)):
            label = f'group="{group}"'
            assert metric(client, f'pika_canary_requests_total{{code="200",{label}}}') == requests
            assert metric(client, f"pika_canary_cost_usd_total{{{label}}}") == pytest.approx(requests * usd)
            assert metric(client, f"pika_canary_expected_correct_total{{{label}}}") == pytest.approx(requests * success)
        assert metric(client, 'pika_requests_total{arm="small",code="200",path="canary",policy="min_cost"}') == tried


def test_a_conversation_stays_in_its_group(client: httpx.Client) -> None:
    arms = Counter()
    for i in range(60):
        begun, _ = told(chat(client, messages=turns(f"{i}?", 0)))
        assert [told(chat(client, messages=turns(f"{i}?", n)))[0] for n in (1, 2)] == [begun, begun]
        named, _ = told(chat(client, {"x-session-id": f"session {i}"}))
        assert told(chat(client, {"x-session-id": f"session {i}"}, messages=turns("Else?", 2)))[0] == named
        arms.update((begun, named))
    assert set(arms) == {"small", "large"}


def test_groups_of_named_conversations_need_no_memory() -> None:
    groups = []
    for _ in range(2):  # two gateways
        with trying(canary=CANDIDATE) as client:
            groups.append([told(chat(client, {"x-session-id": f"{i}"})) for i in range(40)])
    assert groups[0] == groups[1]
    assert len(set(groups[0])) == 2


def test_who_names_a_policy_or_an_arm_takes_no_part() -> None:
    with trying(canary=CANDIDATE | {"share": 1}) as client:
        assert told(chat(client)) == ("small", "canary")
        assert told(chat(client, routing={"arms": ["medium", "large"]})) == ("medium", "canary")
        assert told(chat(client, routing={"lambda": 0})) == ("large", "routed")
        assert told(chat(client, model="auto-max_success")) == ("large", "routed")
        assert told(chat(client, model="medium")) == ("medium", "pinned")
        assert metric(client, "pika_canary_requests_total") == 2


def test_errors_and_fallbacks_count_for_their_group() -> None:
    handlers = {"small": [faults.fails_with(500)], "large": [faults.fails_with(400)]}
    with gateway(handlers, canary=CANDIDATE | {"share": 1}) as (client, _):
        assert chat(client).headers["x-pika-path"] == "fallback"
        assert metric(client, 'pika_canary_requests_total{code="400",group="canary"}') == 1


def test_a_canary_keeps_to_conversations_as_the_policy_would() -> None:
    candidate = {"share": 1, "policy": {"name": "max_success"}}
    with trying(session={"margin": 0.5}, canary=candidate) as client:
        chat(client, messages=turns("One?", 0), routing={"policy": "min_cost"})
        answer = chat(client, messages=turns("One?", 1))
        assert (*told(answer), answer.headers["x-pika-policy-arm"]) == ("small", "canary", "large")
        assert told(chat(client, messages=turns("One?", 2, TOOL_RESULT))) == ("small", "sticky")


def test_route_tells_group_and_propensity(client: httpx.Client) -> None:
    told = {}
    for i in range(30):
        body = {"model": "auto", "messages": MESSAGES}
        shown = client.post("/route", json=body, headers={"x-session-id": f"{i}"}).json()
        told[shown["group"]] = (shown["arm"], shown["path"], shown["propensity"])
    assert told == {"canary": ("small", "canary", 0.3), "control": ("large", "routed", 0.7)}
    alone = client.post("/route", json={"model": "auto", "messages": MESSAGES, "routing": {"arms": ["large"]}}).json()
    assert alone["propensity"] == 1.0  # both policies agree


def test_arms_come_as_often_as_their_propensity_says_with_an_audit_too() -> None:
    settings = constant_pool({name: ["http://127.0.0.1:1/v1"] for name in ARMS}, canary=CANDIDATE, audit={"share": 0.5})
    parts = build(Order(settings))
    state = State(
        settings, parts.pool, parts.policies, parts.predictor, None, Metrics(),
        canary=parts.canary, sessions=Sessions(), chance=Random(3),
    )  # fmt: skip
    body = orjson.dumps({"model": "auto", "messages": MESSAGES})

    async def all_of_them(n: int) -> Counter[tuple[str, float]]:
        decisions = [await decide(state, parse_chat(body, read_head([]))) for _ in range(n)]
        return Counter((state.pool.names[one.arm], round(one.propensity, 6)) for one in decisions)

    n = 6000
    seen = asyncio.run(all_of_them(n))
    expected = {"small": 0.5 / 3 + 0.5 * 0.3, "medium": 0.5 / 3, "large": 0.5 / 3 + 0.5 * 0.7}
    assert set(seen) == {(arm, round(propensity, 6)) for arm, propensity in expected.items()}
    for (_, propensity), count in seen.items():
        assert count / n == pytest.approx(propensity, abs=0.03)


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"shadow": {"arm": "larg"}}, "shadow.arm: 'larg' is no arm; name one of small, medium, large"),
        ({"canary": {"share": 1.5, "policy": {"name": "min_cost"}}}, "canary.share"),
        ({"canary": {"share": 0.5}}, "canary.policy"),
        ({"session": {"margn": 0.1}}, "did you mean 'margin'?"),
        ({"session": {"minutes": 0}}, "session.minutes"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    file = write_pool(tmp_path, {name: ["http://127.0.0.1:1/v1"] for name in ARMS})
    file.write_text(file.read_text() + orjson.dumps(sections).decode()[1:-1].replace('":', '": ', 1) + "\n")
    with pytest.raises(ConfigError) as error:
        load(file)
    assert said in str(error.value)


@pytest.mark.parametrize("policy", [{"name": "cascade", "thresholds": [0.5]}, {"tuned": "nowhere.json"}])
def test_a_candidate_that_cannot_be_is_refused(policy: dict[str, Any]) -> None:
    urls = {name: ["http://127.0.0.1:1/v1"] for name in ARMS}
    with pytest.raises(ConfigError, match=r"canary\.policy"):
        build(Order(constant_pool(urls, canary={"share": 0.5, "policy": policy})))


def test_pika_check_says_what_is_tried_and_what_conversations_need() -> None:
    urls = {name: ["http://127.0.0.1:1/v1"] for name in ARMS}
    sections: dict[str, Any] = {"session": {}, "shadow": {"arm": "small"}, "canary": CANDIDATE}
    for more, good in (({}, True), ({"workers": 2}, False)):
        found = {one.subject: one for one in check(constant_pool(urls, server=more, **sections))}
        assert found["session"].good == good
        assert ("ledger: {}" in found["session"].message) == (not good)
        assert "30%" in found["canary"].message
        assert found["canary.policy"].message.startswith("min_cost")
        assert "small" in found["shadow"].message


# Shadow mode.


def test_shadow_mode_decides_everything_and_sends_it_to_one_arm() -> None:
    with trying(shadow={"arm": "medium"}) as client:
        n = 5
        for _ in range(n):
            answer = chat(client)
            assert told(answer) == ("medium", "shadow")
            assert answer.headers["x-pika-policy-arm"] == "large"
            assert answer.headers["x-pika-policy"] == "utility"
            assert answer.headers["x-pika-success-probability"] == "0.7000"
        chat(client, routing={"policy": "min_cost"})
        assert told(chat(client, model="small")) == ("small", "pinned")
        shown = client.post("/route", json={"model": "auto", "messages": MESSAGES}).json()
        assert (shown["arm"], shown["path"], shown["policy_arm"]) == ("medium", "shadow", "large")
        price = {name: 0.1 * 10**i / 1e6 for i, name in enumerate(ARMS)}
        inputs = USAGE["prompt_tokens"]
        expected = {"small": 1 * price["small"] * (inputs + 4 * 20), "large": n * price["large"] * (inputs + 4 * 20)}
        for arm, usd in expected.items():
            assert metric(client, f'pika_shadow_cost_usd_total{{arm="{arm}"}}') == pytest.approx(usd)
        assert metric(client, 'pika_shadow_requests_total{arm="large"}') == n
        assert metric(client, 'pika_shadow_requests_total{arm="medium"}') == 0
        assert metric(client, 'pika_shadow_expected_correct_total{arm="large"}') == pytest.approx(0.9 * n)
        paid = (n + 1) * price["medium"] * (inputs + 4 * USAGE["completion_tokens"])
        assert metric(client, "pika_shadow_paid_usd_total") == pytest.approx(paid)
        assert metric(client, 'pika_expected_correct_total{arm="medium"}') == pytest.approx(0.7 * (n + 1))


def test_what_shadow_modes_arm_cannot_serve_goes_where_it_would() -> None:
    with trying(shadow={"arm": "small"}) as client:
        assert told(chat(client, routing={"arms": ["medium"]})) == ("medium", "routed")


def test_shadow_modes_arm_fails_over_to_the_policys_choice() -> None:
    handlers = {"small": [faults.fails_with(500)], "large": [faults.answers]}
    with gateway(handlers, shadow={"arm": "small"}) as (client, _):
        assert told(chat(client)) == ("large", "fallback")


def test_shadow_mode_follows_the_conversations_that_would_be() -> None:
    with trying(shadow={"arm": "medium"}, session={"margin": 0.5}) as client:
        first = chat(client, messages=turns("One?", 0), routing={"policy": "min_cost"})
        assert (told(first), first.headers["x-pika-policy-arm"]) == (("medium", "shadow"), "small")
        second = chat(client, messages=turns("One?", 1))
        assert (told(second), second.headers["x-pika-policy-arm"]) == (("medium", "shadow"), "small")


def test_a_canary_in_shadow_mode_sends_nothing_to_the_candidates_arm() -> None:
    with gateway({name: [faults.answers] for name in ARMS}, shadow={"arm": "medium"}, canary=CANDIDATE) as (
        client,
        all_,
    ):
        would = Counter(chat(client).headers["x-pika-policy-arm"] for _ in range(40))
        assert set(would) == {"small", "large"}
        assert [len(upstream.requests) for upstream in all_] == [0, 40, 0]
        assert metric(client, 'pika_canary_requests_total{code="200",group="canary"}') == would["small"]


def test_shadow_mode_does_not_need_the_engine() -> None:
    before = descendants(os.getpid())
    with faults.running(faults.answers) as upstream:
        nano = nano_pool(upstream.url)
        data = nano.model_dump(by_alias=True)
        data["engine"] |= {"deadline_ms": 300.0, "when_unavailable": 503}
        settings = type(nano).model_validate(data | {"shadow": {"arm": "nano-large"}})
        settings._folder = nano._folder
        with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=20) as client:
            answer = chat(client)
            assert (told(answer), "x-pika-policy-arm" in answer.headers) == (("nano-large", "shadow"), True)
            [process] = descendants(os.getpid()) - before
            os.kill(process, signal.SIGSTOP)
            try:
                assert told(chat(client)) == ("nano-large", "probe-unavailable")
            finally:
                os.kill(process, signal.SIGCONT)
