"""A random share of requests to random arms: as often as it says, never where it must not, its probabilities right."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from random import Random
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from server.chat_request import parse_chat
from server.http.head import RequestHead
from server.live import Order, build
from server.metrics import Metrics
from server.routing.audit import propensity
from server.routing.decide import decide
from server.routing.decision import Decision
from server.routing.session import Sessions
from server.state import State
from tests.support import upstream as faults
from tests.support.gateway import constant_pool
from tests.support.gateway_client import MESSAGES, chat, gateway, metric

ARMS = ("small", "medium", "large")
TOOL_TURN = [*MESSAGES, {"role": "assistant", "content": "", "tool_calls": []}, {"role": "tool", "content": "2"}]


def state_of(**sections: Any) -> State:
    settings = constant_pool({name: ["http://127.0.0.1:1/v1"] for name in ARMS}, **sections)
    parts = build(Order(settings))
    state = State(settings, parts.pool, parts.policies, parts.predictor, None, Metrics(), chance=Random(7))
    state.canary, state.sessions = parts.canary, Sessions()
    return state


def decided(state: State, n: int, **fields: Any) -> list[Decision]:
    body = orjson.dumps({"model": "auto", "messages": MESSAGES, **fields})

    async def all_of_them() -> list[Decision]:
        return [await decide(state, parse_chat(body, RequestHead(request_id=f"{i}"))) for i in range(n)]

    return asyncio.run(all_of_them())


@pytest.fixture(scope="module")
def all_audited() -> Iterator[httpx.Client]:
    with gateway({name: [faults.answers] for name in ARMS}, audit={"share": 1}) as (client, _):
        yield client


@pytest.mark.parametrize(("fields", "able"), [({}, ARMS), ({"routing": {"arms": ["small", "large"]}}, ARMS[::2])])
def test_arms_are_drawn_as_often_as_their_propensity_says(fields: dict[str, Any], able: tuple[str, ...]) -> None:
    state, n, share = state_of(audit={"share": 0.3}), 6000, 0.3
    decisions = decided(state, n, **fields)
    drawn = Counter(state.pool.names[one.arm] for one in decisions)
    assert set(drawn) == set(able)
    for arm in able:
        expected = share / len(able) + (1 - share) * (arm == "large")  # which the policy takes
        assert drawn[arm] / n == pytest.approx(expected, abs=0.03)
        told = {one.propensity for one in decisions if state.pool.names[one.arm] == arm}
        assert list(told) == pytest.approx([expected])
    assert sum(one.path == "audit" for one in decisions) / n == pytest.approx(share, abs=0.03)
    assert {state.pool.names[one.policy_arm] for one in decisions} == {"large"}


def test_what_the_policy_draws_is_part_of_the_chances() -> None:
    for audit, sections in ((0.0, {}), (0.3, {"audit": {"share": 0.3}})):
        decisions = decided(state_of(**sections), 200, model="auto-random")
        assert [one.propensity for one in decisions] == pytest.approx([1 / 3] * 200), audit
    canary = {"share": 0.4, "policy": {"name": "random"}}
    decisions = decided(state_of(canary=canary), 400)  # the policy itself takes the third arm
    chances = {0: 0.4 / 3, 1: 0.4 / 3, 2: 0.6 + 0.4 / 3}
    assert {one.arm for one in decisions} >= {2}
    assert all(one.propensity == pytest.approx(chances[one.arm]) for one in decisions)


def test_weighed_by_propensity_every_arm_speaks_for_all_prompts() -> None:
    """Two kinds of prompts; the arm of the hard ones would look worse than it is by the ones that it gets."""
    rng, chance, share = np.random.default_rng(0), Random(0), 0.2
    right = np.array([[0.9, 0.95], [0.2, 0.7]])  # easy, hard: by arm
    hard = (rng.random(40_000) < 0.4).astype(int)
    audited = [chance.random() < share for _ in hard]
    arm = np.where(audited, rng.integers(2, size=len(hard)), hard)  # routing sends the hard ones to the second
    weight = 1 / np.array([propensity(share, 2, float(a == h)) for a, h in zip(arm, hard, strict=True)])
    outcome = rng.random(len(hard)) < right[hard, arm]
    for one in range(2):
        truth, mine = 0.6 * right[0, one] + 0.4 * right[1, one], arm == one
        assert abs(outcome[mine].mean() - truth) > 0.1
        assert np.average(outcome[mine], weights=weight[mine]) == pytest.approx(truth, abs=0.02)


def test_audited_requests_say_so(all_audited: httpx.Client) -> None:
    answers = [chat(all_audited).headers for _ in range(60)]
    assert {one["x-pika-path"] for one in answers} == {"audit"}
    assert {one["x-pika-arm"] for one in answers} == set(ARMS)
    probability = {"small": "0.5000", "medium": "0.7000", "large": "0.9000"}
    assert all(one["x-pika-success-probability"] == probability[one["x-pika-arm"]] for one in answers)
    assert metric(all_audited, 'pika_requests_total{arm="small",code="200",path="audit"') > 0


def test_who_may_not_be_audited_is_not(all_audited: httpx.Client) -> None:
    for fields in (
        {"model": "small"},
        {"model": "small", "routing": {"fallback": True}},
        {"routing": {"arms": ["medium"]}},
        {"routing": {"max_cost_usd": 1e-9}},
        {"messages": TOOL_TURN},
    ):
        assert "audit" not in {chat(all_audited, **fields).headers["x-pika-path"] for _ in range(5)}
    paths = [all_audited.post("/route", json={"model": "auto", "messages": MESSAGES}).json()["path"] for _ in range(5)]
    assert set(paths) == {"routed"}


def test_bounds_of_the_request_hold_for_audits_too(all_audited: httpx.Client) -> None:
    arms = {chat(all_audited, routing={"arms": ["small", "medium"]}).headers["x-pika-arm"] for _ in range(40)}
    assert arms == {"small", "medium"}
    # The dearest answer is expected to cost 900e-6 USD.
    arms = {chat(all_audited, routing={"max_cost_usd": 500e-6}).headers["x-pika-arm"] for _ in range(40)}
    assert arms == {"small", "medium"}


def test_an_audited_arm_that_fails_is_replaced() -> None:
    arms = {"small": [faults.fails_with(500)], "large": [faults.answers]}
    with gateway(arms, audit={"share": 1}) as (client, _):
        answers = [chat(client) for _ in range(20)]
    assert {one.status_code for one in answers} == {200}
    assert {(one.headers["x-pika-arm"], one.headers["x-pika-path"]) for one in answers} == {
        ("large", "audit"),
        ("large", "fallback"),
    }


def test_nothing_is_drawn_without_the_section() -> None:
    decisions = decided(state_of(), 50)
    assert {(one.path, one.propensity) for one in decisions} == {("routed", 1.0)}


@pytest.mark.parametrize("share", [0, 1.01, -0.1, "all"])
def test_a_share_is_a_share(share: Any) -> None:
    with pytest.raises(ValueError, match="audit"):
        constant_pool({"small": ["http://127.0.0.1:1/v1"]}, audit={"share": share})
