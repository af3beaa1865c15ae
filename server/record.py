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
        self.state.metrics.routing.observe(self.routing_s)
        self.state.metrics.probe_cost.inc(sent.decision.prediction.prefill_usd)
        self.state.metrics.observe_percentile(sent.decision.prediction.percentile)

    def first_byte(self) -> None:
        if self.sent is not None:
            arm = self.state.pool.arms[self.sent.decision.arm].name
            self.state.metrics.first_token.labels(arm).observe(time.perf_counter() - self.began)

    def finish(self, status: int, usage: dict[str, Any] | None = None) -> None:
        """The request is over; a second call changes nothing."""
        if self._finished:
            return
        self._finished = True
        duration_s = time.perf_counter() - self.began
        if self.sent is None:
            self.state.metrics.request("none", "none", "none", status).inc()
            self._log(status, duration_s)
            return
        metrics, decision = self.state.metrics, self.sent.decision
        arm = self.state.pool.arms[decision.arm].name
        metrics.request(arm, decision.policy, decision.path, status).inc()
        metrics.duration.labels(arm).observe(duration_s)
        for flag in decision.flags:
            metrics.flags.labels(flag).inc()
        if status == 200:
            self._count_answer(decision, usage)
        prediction = decision.prediction
        self._log(
            status,
            duration_s,
            arm=arm,
            policy=decision.policy,
            path=decision.path,
            attempts=self.sent.attempts,
            success_probability=decision.success_probability,
            activation_percentile=prediction.percentile,
            flags=decision.flags,
            input_tokens=None if usage is None else _count(usage, "prompt_tokens"),
            output_tokens=None if usage is None else _count(usage, "completion_tokens"),
        )

    def _log(self, status: int, duration_s: float, **fields: Any) -> None:
        """The one line of this request; never what it says."""
        first = {"request_id": self.request_id, "code": status, "ms": round(duration_s * 1e3, 1)}
        logger.info("request", extra={"fields": first | fields})

    def _count_answer(self, decision: Decision, usage: dict[str, Any] | None) -> None:
        metrics, arms = self.state.metrics, self.state.pool.arms
        chosen = arms[decision.arm]
        probability = decision.success_probability
        if probability is not None:
            metrics.success.labels(chosen.name).observe(probability)
            metrics.expected_correct.labels(chosen.name).inc(probability)
        if usage is None:
            logger.warning("request %s: the upstream sent no usage, so its cost is not counted", self.request_id)
            return
        inputs, outputs = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        metrics.tokens.labels(chosen.name, "input").inc(inputs)
        metrics.tokens.labels(chosen.name, "output").inc(outputs)
        metrics.cost.labels(chosen.name).inc(chosen.cost_usd(inputs, outputs))
        for arm in arms:
            always = (inputs, outputs) if arm is chosen else (inputs, arm.mean_output_tokens)
            metrics.cost_always.labels(arm.name).inc(arm.cost_usd(*always))


def _count(usage: dict[str, Any], key: str) -> int:
    value = usage.get(key)
    return value if isinstance(value, int) and value >= 0 else 0


def decision_headers(
    state: State, request_id: str, routing_s: float, sent: Dispatch | None, debug: bool
) -> list[tuple[bytes, bytes]]:
    """The `x-pika-*` headers, sent before the first byte of every answer."""
    headers = {"x-request-id": request_id}
    if sent is not None:
        decision = sent.decision
        arm = state.pool.arms[decision.arm]
        headers |= {
            "x-pika-arm": arm.name,
            "x-model-router-selected-model": arm.model.name,
            "x-pika-policy": decision.policy,
            "x-pika-path": decision.path,
            "x-pika-flags": ",".join(decision.flags),
            "x-pika-expected-cost-usd": f"{decision.cost[decision.arm]:.3g}",
            "x-pika-routing-ms": f"{routing_s * 1e3:.2f}",
            "x-pika-attempts": str(sent.attempts),
        }
        if decision.success_probability is not None:
            headers["x-pika-success-probability"] = f"{decision.success_probability:.4f}"
        if arm.probe_name is not None:
            headers["x-pika-probe"] = arm.probe_name
        if debug:
            known = zip(state.pool.arms, decision.prediction.success, strict=True)
            headers["x-pika-success-probabilities"] = ",".join(
                f"{one.name}={value:.4f}" for one, value in known if not np.isnan(value)
            )
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]
