"""What `pika replay` is asked to try: policies and their knobs in words, and spans of time."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from typing import Any

import numpy as np

from offline.evaluation.sweep import multipliers
from routing_policies.base import NAMES, FloatArray, load
from routing_policies.costs import normalise
from server.config import Settings
from server.sections.policy import ROUTING_FIELDS

KNOBS = tuple(field for field in ROUTING_FIELDS if field not in ("policy", "arms", "fallback", "max_cost_usd"))
"""Words that a policy is set by; the other fields of `routing` are about a request."""
SWEPT = {"lambda": "utility", "thresholds": "cascade", "min_success": "min_success", "accuracy": "target_accuracy"}
"""Knobs that can be swept, and the policy whose they are."""
SWEEP_VALUES = 21
SWEEP_ROWS = 20_000
"""So many requests tell where lambda makes a difference."""
MOST_POLICIES = 200
SPAN_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class ReplayError(ValueError):
    """Nothing can be replayed; the message names the fix."""


@dataclass(frozen=True)
class Asked:
    """A policy and its knobs, by the words of the API's `routing` object."""

    policy: str
    knobs: Mapping[str, Any]

    def __str__(self) -> str:
        told = {name: value for name, value in self.knobs.items() if name not in ("table", "guarantee")}
        return " ".join((self.policy, *(f"{name}={_word(value)}" for name, value in told.items())))


def parse_policy(text: str, given: Mapping[str, Any]) -> list[Asked]:
    """`utility lambda=0.4,1.0` is two policies, `cascade thresholds=0.6,0.8` one with a threshold per step.

    Args:
        given: what a configuration's policy has: tables of `pika tune`, which no one writes by hand.

    Raises:
        ReplayError: an unknown policy or knob, or a value that is none.
    """
    name, *words = text.split() or [""]
    if name not in NAMES:
        raise ReplayError(f"--policy {text!r}: there is no policy {name!r}; {_nearest(name, NAMES)}")
    values: dict[str, list[Any]] = {}
    for word in words:
        knob, equals, value = word.partition("=")
        if knob not in KNOBS:
            raise ReplayError(f"--policy {text!r}: there is no knob {knob!r}; {_nearest(knob, KNOBS)}")
        if not equals or not value:
            raise ReplayError(f"--policy {text!r}: write {knob}=VALUE, such as 'utility lambda=0.4'")
        if knob in values:
            raise ReplayError(f"--policy {text!r}: {knob} stands there twice; {knob}=A,B tries both")
        values[knob] = [value] if knob == "variant" else _numbers(knob, value)
        if knob == "thresholds" and len(values[knob]) > 1:
            values[knob] = [values[knob]]
    settings = [dict(zip(values, setting, strict=True)) for setting in product(*values.values())]
    if len(settings) > MOST_POLICIES:
        raise ReplayError(f"--policy {text!r}: {len(settings)} policies are too many; at most {MOST_POLICIES}")
    return [Asked(name, {**_tables(given), **setting}) for setting in settings]


def configured(settings: Settings) -> Asked:
    """The policy of a configuration as it stands now, with the knobs that `pika tune` found.

    Raises:
        ReplayError: the tuning file cannot be read.
    """
    tuned: dict[str, Any] = {}
    if settings.policy.tuned is not None:
        file = settings.resolve(settings.policy.tuned)
        try:
            tuned = json.loads(file.read_text(encoding="utf-8"))
            knobs = {**tuned["knobs"], "table": tuned["table"]}
            if tuned.get("guarantee") is not None:
                knobs["guarantee"] = tuned["guarantee"]["table"]
            name = str(tuned["policy"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = error.strerror if isinstance(error, OSError) else "it is no tuning file"
            raise ReplayError(f"policy.tuned: cannot read {file} ({said}); `pika tune` writes it") from error
    else:
        name, knobs = "", {}
    own = settings.policy.knobs()
    own.pop("max_cost_usd", None)  # what it rules out stands in the decisions
    knobs |= own
    return Asked(settings.policy.name or name, knobs)


def only_own(asked: Asked) -> Asked:
    """Without the knobs of other policies, which a tuning file has for requests that ask for these."""
    policy = load(asked.policy)
    words = {"utility": ("variant", "lambda", "value"), "target_accuracy": ("accuracy", "table")}.get(
        asked.policy, (policy.knob or "", "guarantee")
    )
    return Asked(asked.policy, {name: value for name, value in asked.knobs.items() if name in words})


def parse_sweep(text: str, given: Mapping[str, Any], success: FloatArray, tier_cost: Sequence[float]) -> list[Asked]:
    """`lambda`, or `lambda=0,0.5,1` for values of one's own; see `SWEPT`.

    Args:
        success: probabilities of the requests, (n, k).

    Raises:
        ReplayError: a knob that no policy is swept by, or a value that is none.
    """
    knob, equals, words = text.partition("=")
    if knob not in SWEPT:
        raise ReplayError(f"--sweep {text!r}: there is no knob {knob!r} to sweep; {_nearest(knob, tuple(SWEPT))}")
    if equals:
        values = _numbers(knob, words)
    elif knob == "lambda":
        some = success[:: max(1, len(success) // SWEEP_ROWS)]
        # Evenly many requests change between each two; the last of them are few, at values of no use.
        where = np.quantile(multipliers(some, normalise(tier_cost)), np.linspace(0, 0.98, SWEEP_VALUES))
        values = list(dict.fromkeys(float(f"{value:.3g}") for value in where))
    elif knob == "accuracy":
        reached = [accuracy for accuracy, _ in given.get("table", ())] or [0.0, 1.0]
        values = np.linspace(reached[0], reached[-1], SWEEP_VALUES).round(6).tolist()
    else:
        values = np.linspace(0, 1, SWEEP_VALUES).round(6).tolist()
    if len(values) > MOST_POLICIES:
        raise ReplayError(f"--sweep {knob}: {len(values)} values are too many; at most {MOST_POLICIES}")
    return [Asked(SWEPT[knob], {**_tables(given), knob: value}) for value in values]


def parse_time(text: str, now: float) -> float:
    """Unix seconds of `7d` (so long before now; m, h, d or w) or of `2026-11-01` or `2026-11-01T06:00` (UTC).

    Raises:
        ReplayError: it is neither.
    """
    span = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)([mhdw])", text)
    if span is not None:
        return now - float(span[1]) * SPAN_S[span[2]]
    try:
        at = datetime.fromisoformat(text)
        return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ReplayError(f"{text!r} is no time: write 90m, 24h, 7d or 4w, or a date such as 2026-11-01") from None


def _tables(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("table", "guarantee") if name in given}


def _numbers(knob: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise ReplayError(f"{knob}={text}: write a number, or several with commas between, such as 0.4,1.0") from None


def _word(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(_word, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _nearest(word: str, valid: Sequence[str]) -> str:
    near = difflib.get_close_matches(word[:64], valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(valid)}"


def unique(asked: Sequence[Asked]) -> Iterator[Asked]:
    """Each once, in order."""
    seen = set()
    for one in asked:
        if str(one) not in seen:
            seen.add(str(one))
            yield one
