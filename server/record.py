"""What is kept of a request: metrics, a log line, and the headers that explain its decision."""

import logging
import time
from typing import Any

import numpy as np

from server.decision import Decision
from server.retry import Dispatch
from server.state import State

logger = logging.getLogger(__name__)


class Record:
    """Counts one request once, at its end."""

    def __init__(self, state: State, request_id: str) -> None:
        self.state = state
        self.request_id = request_id
        self.began = time.perf_counter()
        self.routing_s = 0.0
        self.sent: Dispatch | None = None
        self._finished = False

    def read(self) -> None:
        """The whole request is here: from now on the time is ours, not the client's."""
        self.began = time.perf_counter()

    def decided(self, sent: Dispatch) -> None:
        """There is a decision; where a fallback replaces it, `sent` says so."""
        self.sent = sent
        self.routing_s = time.perf_counter() - self.began
        metrics, prediction = self.state.metrics, sent.decision.prediction
        metrics.routing.observe(self.routing_s)
        if prediction.prefill_usd:
            metrics.probe_cost.inc(prediction.prefill_usd)
        metrics.observe_percentile(prediction.percentile)

    def first_byte(self) -> None:
        if self.sent is not None:
            self.state.series[self.sent.decision.arm].first_token.observe(time.perf_counter() - self.began)

    def finish(self, status: int, usage: dict[str, Any] | None = None) -> None:
        """The request is over; a second call changes nothing."""
        if self._finished:
            return
        self._finished = True
        duration_s = time.perf_counter() - self.began
        if self.sent is None:
            self.state.metrics.requests.labels("none", "none", "none", str(status)).inc()
            logger.info("request %s code=%d ms=%.1f", self.request_id, status, duration_s * 1e3)
            return
        decision = self.sent.decision
        series = self.state.series[decision.arm]
        series.requests(decision.policy, decision.path, status).inc()
        series.duration.observe(duration_s)
        for flag in decision.flags:
            self.state.metrics.count_flag(flag)
        if status == 200:
            self._count_answer(decision, usage)
        logger.info(
            "request %s arm=%s policy=%s path=%s code=%d ms=%.1f success=%s percentile=%s flags=%s",
            *(self.request_id, self.sent.arm.name, decision.policy, decision.path, status, duration_s * 1e3),
            *(_short(decision.success_probability, 3), _short(decision.prediction.percentile, 1)),
            ",".join(decision.flags) or "-",
        )

    def _count_answer(self, decision: Decision, usage: dict[str, Any] | None) -> None:
        arms, all_series = self.state.pool.arms, self.state.series
        series = all_series[decision.arm]
        probability = decision.success_probability
        if probability is not None:
            series.success.observe(probability)
            series.expected_correct.inc(probability)
        if usage is None:
            level = logging.WARNING if self.sent is not None and self.sent.request.routed else logging.DEBUG
            logger.log(level, "request %s: the upstream sent no usage, so its cost is not counted", self.request_id)
            return
        inputs = _count(usage, "prompt_tokens") or _count(usage, "input_tokens")
        outputs = _count(usage, "completion_tokens") or _count(usage, "output_tokens")
        series.input_tokens.inc(inputs)
        series.output_tokens.inc(outputs)
        series.cost.inc(arms[decision.arm].cost_usd(inputs, outputs))
        for i, arm in enumerate(arms):
            always = outputs if i == decision.arm else arm.mean_output_tokens
            all_series[i].cost_always.inc(arm.cost_usd(inputs, always))


def _short(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and value >= 0 else 0


def decision_headers(
    state: State, request_id: str, routing_s: float, sent: Dispatch | None, debug: bool
) -> list[tuple[bytes, bytes]]:
    """The `x-pika-*` headers, sent before the first byte of every answer."""
    headers = [(b"x-request-id", request_id.encode())]
    if sent is None:
        return headers
    decision = sent.decision
    headers += state.series[decision.arm].headers
    headers += [
        (b"x-pika-policy", decision.policy.encode()),
        (b"x-pika-path", decision.path.encode()),
        (b"x-pika-flags", ",".join(decision.flags).encode()),
        (b"x-pika-expected-cost-usd", b"%.3g" % decision.cost[decision.arm]),
        (b"x-pika-routing-ms", b"%.2f" % (routing_s * 1e3)),
        (b"x-pika-attempts", b"%d" % sent.attempts),
    ]
    if decision.success_probability is not None:
        headers.append((b"x-pika-success-probability", b"%.4f" % decision.success_probability))
    if debug:
        known = zip(state.pool.names, decision.prediction.success, strict=True)
        text = ",".join(f"{name}={value:.4f}" for name, value in known if not np.isnan(value))
        headers.append((b"x-pika-success-probabilities", text.encode()))
    return headers
