"""What a request may ask of routing, and which of several wishes wins."""

from typing import Any

import pytest

from server.errors import BadRequestError
from server.routing.knobs import parse_knobs
from server.sections.policy import ROUTING_FIELDS

ARMS = ["small", "medium", "large"]


def parse(body: dict[str, Any] | None = None, alias: str = "auto", **headers: str) -> dict[str, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return parse_knobs(body or {}, named, alias, list(ROUTING_FIELDS), ARMS)


def test_nothing_asked() -> None:
    assert parse() == {}


def test_body_wins_over_header_over_alias() -> None:
    assert parse(alias="auto-utility-0.1") == {"policy": "utility", "lambda": 0.1}
    assert parse(alias="auto-utility-0.1", x_pika_lambda="0.2") == {"policy": "utility", "lambda": 0.2}
    body = {"routing": {"lambda": 0.3}}
    assert parse(body, "auto-utility-0.1", x_pika_lambda="0.2") == {"policy": "utility", "lambda": 0.3}


def test_alias_words() -> None:
    assert parse(alias="auto-cascade-0.9") == {"policy": "cascade", "thresholds": 0.9}
    assert parse(alias="auto-min_success-0.8") == {"policy": "min_success", "min_success": 0.8}
    assert parse(alias="auto-max_success") == {"policy": "max_success"}
    assert parse(alias="auto-utility-1e-3") == {"policy": "utility", "lambda": 0.001}


def test_header_words() -> None:
    given = parse(
        x_pika_thresholds="0.5, 0.7", x_pika_arms="small,large", x_pika_max_cost_usd="0.001", x_pika_debug="1"
    )
    assert given == {"thresholds": [0.5, 0.7], "arms": ["small", "large"], "max_cost_usd": 0.001}


@pytest.mark.parametrize(
    ("body", "alias", "headers", "message"),
    [
        ({"routing": {"lamda": 1}}, "auto", {}, "did you mean 'lambda'?"),
        ({"routing": []}, "auto", {}, "routing must be an object"),
        ({"routing": {"lambda": -0.1}}, "auto", {}, "routing.lambda must be at least 0"),
        ({"routing": {"lambda": "0.1"}}, "auto", {}, "routing.lambda must be a finite number"),
        ({"routing": {"lambda": True}}, "auto", {}, "routing.lambda must be a finite number"),
        ({"routing": {"min_success": 1.1}}, "auto", {}, "must lie in [0, 1]"),
        ({"routing": {"policy": "utilty"}}, "auto", {}, "did you mean 'utility'?"),
        ({"routing": {"thresholds": [0.1]}}, "auto", {}, "one for each of the 2 steps"),
        ({"routing": {"arms": ["smal"]}}, "auto", {}, "did you mean 'small'?"),
        ({"routing": {"arms": []}}, "auto", {}, "list of arm names"),
        ({}, "auto-utilty", {}, "did you mean 'utility'?"),
        ({}, "auto-max_success-1", {}, "has no knob to set"),
        ({}, "auto-utility-x", {}, "model must be a finite number"),
        ({}, "auto", {"x-pika-lamda": "1"}, "did you mean 'x-pika-lambda'?"),
        ({}, "auto", {"x-pika-lambda": "nan"}, "must be a finite number"),
    ],
)
def test_a_wrong_wish_is_named(body: dict[str, Any], alias: str, headers: dict[str, str], message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        parse_knobs(body, headers, alias, list(ROUTING_FIELDS), ARMS)
    assert message in str(caught.value)


def test_only_what_the_configuration_allows() -> None:
    with pytest.raises(BadRequestError, match="allow_request"):
        parse_knobs({"routing": {"lambda": 1}}, {}, "auto", ["policy"], ARMS)
