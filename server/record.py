"""What is kept of a request: metrics, a log line, and the headers that explain its decision."""

import logging
import time
from functools import lru_cache
from typing import Any

import numpy as np

from server.http.head import Lines, lines_of
from server.kept import decision_row
from server.keys.account import Account
from server.log import log_fields
from server.metrics import Metrics
from server.state import State
from server.tally import Tally
from server.upstream.retry import Dispatch

logger = logging.getLogger(__name__)

MAX_TOKENS = 2**31
"""An upstream that claims more for one answer is not believed."""


class Record:
    """Counts one request once, at its end."""

    def __init__(self, state: State, request_id: str) -> None:
        self.state = state
        self.request_id = request_id
        self.began = time.perf_counter()
        self.routing_s = 0.0
        self.sent: Dispatch | None = None
        self.beginning = b""
        """Of the answer."""
        self.account: Account | None = None
        """Of the client's key."""
        self.tokens: tuple[int, int] | None = None
        """Input and output, once the upstream has said."""
        self._finished = False

    def read(self) -> None:
        """The whole request is here: from now on the time is ours, not the client's."""
        self.began = time.perf_counter()

    def decided(self, sent: Dispatch) -> None:
        """There is a decision; where a fallback replaces it, `sent` says so."""
        self.sent = sent
        self.routing_s = time.perf_counter() - self.began
        metrics, prediction = self.state.metrics, sent.decision.prediction
        self.state.tallies[sent.decision.arm].routing.observe(self.routing_s)
        if prediction.prefill_usd:
            metrics.probe_cost.inc(prediction.prefill_usd)
        metrics.observe_percentile(prediction.percentile)

    def first_byte(self) -> None:
        if self.sent is not None:
            self.state.tallies[self.sent.decision.arm].first_token.observe(time.perf_counter() - self.began)

    def used(self, usage: dict[str, Any] | None) -> None:
        """What the upstream says, so that the key's account knows even if the client leaves now."""
        if usage is not None:
            self.tokens = _tokens(usage)
            if self.account is not None:
                self.account.usage = self.tokens

    def finish(self, status: int, path: str = "none") -> None:
        """The request is over; a second call changes nothing.

        Args:
            path: where no arm was chosen, why, if that is to be counted apart.
        """
        if self._finished:
            return
        self._finished = True
        sent = self.sent
        if self.account is not None:
            self.account.finish(None if sent is None else sent.arm)
        duration_s = time.perf_counter() - self.began
        fields = _fields(self.request_id, status, duration_s)
        if sent is None:
            self.state.metrics.request("none", "none", path, status).inc()
            self._log(fields)
            return
        decision, tokens = sent.decision, self.tokens if status == 200 else None
        tally = self.state.tallies[decision.arm]
        tally.requests[decision.policy, decision.path, status] += 1
        tally.duration.observe(duration_s)
        for flag in decision.flags:
            tally.flags[flag] += 1
        self.state.metrics.trial.count(decision, status)
        probability = decision.success_probability
        if status == 200:
            self._count_answer(tally, sent, probability)
        ledger = self.state.ledger
        if ledger is not None:
            ledger.put(decision_row(self.request_id, sent, status, tokens, self.routing_s, duration_s, self.beginning))
        fields |= {
            "arm": sent.arm.name,
            "policy": decision.policy,
            "path": decision.path,
            "attempts": sent.attempts,
            "success_probability": probability,
            "activation_percentile": decision.prediction.percentile,
            "flags": decision.flags,
            "input_tokens": None if tokens is None else tokens[0],
            "output_tokens": None if tokens is None else tokens[1],
        }
        self._log(fields)

    def _log(self, fields: dict[str, Any]) -> None:
        """The one line of a request; never what it says."""
        if self.account is not None:
            fields["key"] = self.account.key.name
        log_fields(logger, "request", fields)

    def _count_answer(self, tally: Tally, sent: Dispatch, probability: float | None) -> None:
        if probability is not None:
            tally.success.observe(probability)
        self.state.metrics.trial.count_answer(self.state.pool, sent.decision, self.tokens)
        if self.tokens is None:
            level = logging.WARNING if sent.request.routed else logging.DEBUG
            logger.log(level, "request %s: the upstream sent no usage, so its cost is not counted", self.request_id)
            return
        tally.answer(*self.tokens)


def count_unrouted(metrics: Metrics, request_id: str, status: int, path: str, duration_s: float = 0.0) -> None:
    """Count and log a request that asks nothing of an arm.

    Args:
        path: one of few words, such as score; none for what is refused.
    """
    metrics.request("none", "none", path, status).inc()
    log_fields(logger, "request", {**_fields(request_id, status, duration_s), "path": path})


def _fields(request_id: str, status: int, duration_s: float) -> dict[str, Any]:
    """What every request's line begins with."""
    # To a tenth; `round` takes three times as long.
    return {"request_id": request_id, "code": status, "ms": int(duration_s * 1e4 + 0.5) / 10}


def _tokens(usage: dict[str, Any]) -> tuple[int, int]:
    """Input and output."""
    return (
        _count(usage, "prompt_tokens") or _count(usage, "input_tokens"),
        _count(usage, "completion_tokens") or _count(usage, "output_tokens"),
    )


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and 0 <= value <= MAX_TOKENS else 0


@lru_cache(maxsize=256)
def _words(policy: str, path: str, flags: tuple[str, ...]) -> Lines:
    headers = {b"policy": policy, b"path": path, b"flags": ",".join(flags)}
    return lines_of((b"x-pika-" + name, value.encode()) for name, value in headers.items())


def decision_lines(state: State, request_id: str, routing_s: float, sent: Dispatch | None, debug: bool) -> Lines:
    """The `x-pika-*` headers, sent before the first byte of every answer."""
    lines = b"x-request-id: %b\r\n" % request_id.encode()
    if sent is None:
        return lines
    decision = sent.decision
    lines += sent.arm.lines + _words(decision.policy, decision.path, decision.flags)
    lines += b"x-pika-expected-cost-usd: %.3g\r\nx-pika-routing-ms: %.2f\r\nx-pika-attempts: %d\r\n" % (
        decision.cost.item(decision.arm), routing_s * 1e3, sent.attempts,
    )  # fmt: skip
    if decision.path == "shadow" or decision.policy_arm != decision.arm:
        lines += b"x-pika-policy-arm: %b\r\n" % state.pool.names[decision.policy_arm].encode()
    probability = decision.success_probability
    if probability is not None:
        lines += b"x-pika-success-probability: %.4f\r\n" % probability
    if debug:
        known = zip(state.pool.names, decision.prediction.success, strict=True)
        text = ",".join(f"{name}={value:.4f}" for name, value in known if not np.isnan(value))
        lines += b"x-pika-success-probabilities: %b\r\n" % text.encode()
    return lines
