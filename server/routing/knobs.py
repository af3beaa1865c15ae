"""What a request asks of routing: body `routing`, then `x-pika-*` headers, then the model alias. The first wins."""

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from routing_policies.base import NAMES, load
from server.errors import BadRequestError
from server.sections.policy import ROUTING_FIELDS

HEADER_PREFIX = "x-pika-"
HEADERS = {HEADER_PREFIX + field.replace("_", "-"): field for field in ROUTING_FIELDS}
DEBUG_HEADER = HEADER_PREFIX + "debug"
MAX_WORD = 64
"""What is longer is no slip of the pen: it is neither compared with what there is nor shown whole."""


def parse_knobs(
    body: Mapping[str, Any], headers: Mapping[str, str], alias: str, allowed: Sequence[str], arms: list[str]
) -> dict[str, Any]:
    """The knobs that a request sets, by the words of the `routing` object.

    Args:
        alias: the request's model, `auto` or `auto-<policy>[-<value>]`.
        allowed: the configuration's `allow_request`.
        arms: names of the configured arms.

    Raises:
        BadRequestError: a knob is unknown, not allowed, or of the wrong type or range; names the field.
    """
    routing = body.get("routing")
    if routing is None and alias == "auto" and not headers:
        return {}
    if routing is None:
        routing = {}
    if not isinstance(routing, dict):
        raise BadRequestError('routing must be an object such as {"policy": "utility", "lambda": 0.4}', "routing")
    given: dict[str, tuple[Any, str]] = {}
    for source in (_from_alias(alias), _from_headers(headers), _from_body(routing)):
        given |= source
    for field, (_, where) in given.items():
        if field not in allowed:
            raise BadRequestError(
                f"{where}: this gateway's configuration (allow_request) does not let requests set {field}", where
            )
    return {field: _check(field, value, where, arms) for field, (value, where) in given.items()}


def _from_body(routing: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    for key in routing:
        if key not in ROUTING_FIELDS:
            raise BadRequestError(f"routing.{key[:MAX_WORD]} is unknown: {_nearest(key, ROUTING_FIELDS)}", "routing")
    return {key: (value, f"routing.{key}") for key, value in routing.items() if value is not None}


def _from_headers(headers: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    given: dict[str, tuple[Any, str]] = {}
    for name, text in headers.items():
        if not name.startswith(HEADER_PREFIX) or name == DEBUG_HEADER:
            continue
        field = HEADERS.get(name)
        if field is None:
            raise BadRequestError(f"header {name} is unknown: {_nearest(name, (*HEADERS, DEBUG_HEADER))}", name)
        given[field] = (_parse_header(field, text), name)
    return given


def _parse_header(field: str, text: str) -> Any:
    if field in ("policy", "variant"):
        return text.strip()
    if field == "fallback":
        return {"true": True, "false": False}.get(text.strip().lower(), text)
    parts = [part.strip() for part in text.split(",")]
    if field == "arms":
        return parts
    numbers = [_number(part) for part in parts]
    return numbers[0] if len(numbers) == 1 else numbers


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _from_alias(alias: str) -> dict[str, tuple[Any, str]]:
    if alias == "auto":
        return {}
    name, dash, text = alias.removeprefix("auto-").partition("-")
    if name not in NAMES:
        raise BadRequestError(f"model {alias[:MAX_WORD]!r} names an unknown policy: {_nearest(name, NAMES)}", "model")
    given: dict[str, tuple[Any, str]] = {"policy": (name, "model")}
    if dash:
        knob = load(name).knob
        if knob is None:
            raise BadRequestError(
                f"model {alias[:MAX_WORD]!r}: policy {name} has no knob to set; ask for auto-{name}", "model"
            )
        given[knob] = (_number(text), "model")
    return given


def _check(field: str, value: Any, where: str, arms: list[str]) -> Any:
    try:
        return CHECKS[field](value, arms)
    except ValueError as error:
        raise BadRequestError(f"{where} {error}", where) from None


def _policy(value: Any, _: list[str]) -> str:
    if value not in NAMES:
        raise ValueError(f"names an unknown policy: {_nearest(str(value), NAMES)}")
    return str(value)


def _text(value: Any, _: list[str]) -> str:
    if not isinstance(value, str):
        raise ValueError("must be a string")
    return value


def _flag(value: Any, _: list[str]) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _bounded(low: float, high: float) -> Callable[[Any, list[str]], float]:
    def check(value: Any, _: list[str]) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError("must be a finite number")
        if not low <= value <= high:
            raise ValueError(f"must be at least {low:g}" if high == math.inf else f"must lie in [{low:g}, {high:g}]")
        return float(value)

    return check


def _thresholds(value: Any, arms: list[str]) -> float | list[float]:
    check = _bounded(0, 1)
    if not isinstance(value, list):
        return check(value, arms)
    if len(value) != len(arms) - 1:
        raise ValueError(f"must be one number, or one for each of the {len(arms) - 1} steps between {len(arms)} arms")
    return [check(item, arms) for item in value]


def _arms(value: Any, arms: list[str]) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of arm names")
    for name in value:
        if name not in arms:
            raise ValueError(f"names the unknown arm {str(name)[:MAX_WORD]!r}: {_nearest(str(name), arms)}")
    return value


CHECKS: dict[str, Callable[[Any, list[str]], Any]] = {
    "policy": _policy,
    "variant": _text,
    "lambda": _bounded(0, math.inf),
    "value": _bounded(-math.inf, math.inf),
    "thresholds": _thresholds,
    "min_success": _bounded(0, 1),
    "accuracy": _bounded(0, 1),
    "max_cost_usd": _bounded(0, math.inf),
    "arms": _arms,
    "fallback": _flag,
}


def _nearest(word: str, valid: tuple[str, ...] | list[str]) -> str:
    near = difflib.get_close_matches(word[:MAX_WORD], valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(valid)}"
