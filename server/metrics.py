"""Every Prometheus series, unit in its name. Labels are bounded by the configuration."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from probes.base import FloatArray
from probes.card import Check
from probes.engine.wire import LOOKUPS
from server.outcomes.gauges import CalibrationGauges
from server.pool import Pool
from server.routing.trial_metrics import TrialMetrics
from server.workers.shared_metrics import Recent, Shared, Sums

# Half of the exposition would tell when each counter was made, which is when we started.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

FLAGS = (
    "infeasible", "out-of-distribution", "truncated", "text-only", "tools-unseen", "policy-changed", "uncalibrated",
    *(f"mismatch-{check}" for check in get_args(Check)),
)  # fmt: skip
MIN_PROMPTS = 100
"""Fewer tell nothing of drift."""
ATTEMPT_OUTCOMES = ("ok", "client_error", "server_error", "connect_error", "timeout", "broken", "cancelled")
JUDGEMENTS = ("true", "false", "partly")
REFUSALS = (400, 408, 431, 500, 503, 505)
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
PROBABILITIES = tuple(i / 20 for i in range(1, 21))
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99, 99.9, 100)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS = (64, 256, 1024, 4096, 16384, 65536)


@dataclass(frozen=True)
class ArmSeries:
    """One arm's series, looked up once: finding a series by its labels costs more than counting."""

    in_flight: Gauge
    attempts: Mapping[str, Counter]
    """By outcome."""
    success: Histogram
    expected_correct: Counter
    input_tokens: Counter
    output_tokens: Counter
    cost: Counter
    cost_always: Counter
    first_token: Histogram
    duration: Histogram


class Metrics:
    """The series of one gateway, in a registry of its own.

    Args:
        shared: where this process counts, if it is one of several workers.
    """

    def __init__(self, shared: Shared | None = None) -> None:
        if shared is not None:
            shared.begin()
        self.registry = CollectorRegistry()
        self.arms: dict[str, ArmSeries] = {}
        self._requests: dict[tuple[str, str, str, int], Counter] = {}
        self.requests = self._counter(
            "pika_requests", "Requests answered, by HTTP code; arm is `none` where none was chosen.",
            ("arm", "policy", "path", "code"),
        )  # fmt: skip
        self.flags = self._counter("pika_flags", "Requests that carried a flag.", ("flag",))
        self._flag_counters = {flag: self.flags.labels(flag) for flag in FLAGS}
        self.tokens = self._counter("pika_tokens", "Tokens by the upstream's usage.", ("arm", "kind"))
        self.cost = self._counter("pika_cost_usd", "Cost of answers, usage times prices.", ("arm",))
        self.probe_cost = self._counter("pika_probe_cost_usd", "Cost of the probe models' prefill.")
        self.cost_always = self._counter(
            "pika_cost_always_usd", "What always using this arm would have cost, estimated from mean output tokens.",
            ("arm",),
        )  # fmt: skip
        self.expected_correct = self._counter(
            "pika_expected_correct", "Sum of success probabilities of scored, answered requests.", ("arm",)
        )
        self.success = self._histogram(
            "pika_success_probability", "Success probability of the chosen arm.", PROBABILITIES, ("arm",)
        )
        self.percentile = self._histogram(
            "pika_activation_percentile", "Percentile of scored prompts' distance to the training prompts.", PERCENTILES
        )
        self._recent_percentiles = Recent(shared)
        self.routing = self._histogram(
            "pika_routing_seconds", "From the whole request read to its dispatch upstream.", OVERHEAD_SECONDS
        )
        self.first_token = self._histogram(
            "pika_time_to_first_token_seconds", "From the whole request read to the first byte of a stream.", SECONDS,
            ("arm",),
        )  # fmt: skip
        self.duration = self._histogram("pika_request_seconds", "Whole requests.", SECONDS, ("arm",))
        self.attempts = self._counter("pika_upstream_attempts", "Upstream attempts.", ("arm", "outcome"))
        self.in_flight = Gauge(
            "pika_in_flight", "Requests now with an upstream.", ("arm",), registry=self.registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self.queue_s = self._histogram(
            "pika_probe_queue_seconds", "Longest wait of a micro-batch's prompts.", OVERHEAD_SECONDS
        )
        self.batch_prompts = self._histogram("pika_probe_batch_prompts", "Prompts per micro-batch.", COUNTS)
        self.batch_tokens = self._histogram(
            "pika_probe_batch_tokens", "Tokens computed per micro-batch, padding left out.", TOKENS
        )
        self.padding = self._counter(
            "pika_probe_padding_tokens",
            "Padding that went through probe models; not what a GPU's attention alone pads.",
        )
        self.reused = self._counter(
            "pika_probe_reused_tokens", "Prompts' tokens not computed, since earlier prompts begin with them."
        )
        self.cache = self._counter(
            "pika_probe_cache", "Prompts whose scores were kept (hit), on their way (shared), or neither (miss).",
            ("result",),
        )  # fmt: skip
        for found in LOOKUPS:
            self.cache.labels(found)
        self.reloads = self._counter("pika_reloads", "Reloads of configuration and probes.", ("result",))
        for result in ("done", "refused"):
            self.reloads.labels(result)
        self.refused = self._counter(
            "pika_refused", "Requests that are no HTTP, too large a head or too slow, and connections over the limit.",
            ("code",),
        )  # fmt: skip
        for code in REFUSALS:
            self.refused.labels(code)
        self.trial = TrialMetrics(self.registry)
        self.log_dropped = self._counter("pika_log_dropped", "Log lines lost because they came faster than they go.")
        self.ledger_dropped = self._counter(
            "pika_ledger_dropped", "Decision records lost because the ledger's database was away or too slow."
        )
        self.outcomes = self._counter(
            "pika_outcomes", "Outcomes that changed what is known of an answer: right, wrong, or partly right.",
            ("arm", "correct"),
        )  # fmt: skip
        self.calibration = CalibrationGauges()
        self._told = _Told(self._recent_percentiles)
        self._scraped = self.registry if shared is None else CollectorRegistry()
        if shared is not None:
            self._scraped.register(Sums(shared.folder))
        self._scraped.register(self._told)
        self._scraped.register(self.calibration)

    def follow(self, pool: Pool, default_policy: str, budget_ratios: Callable[[], Mapping[str, float]] = dict) -> None:
        """Series of this pool from now on: counters exist at zero from the start, and go on over a reload.

        Args:
            budget_ratios: what share of its budget each key has used.
        """
        for arm in (arm.name for arm in pool.arms):
            self.request(arm, default_policy, "routed", 200)
            for judged in JUDGEMENTS:
                self.outcomes.labels(arm, judged)
            self.arms[arm] = ArmSeries(
                in_flight=self.in_flight.labels(arm),
                attempts={outcome: self.attempts.labels(arm, outcome) for outcome in ATTEMPT_OUTCOMES},
                success=self.success.labels(arm),
                expected_correct=self.expected_correct.labels(arm),
                input_tokens=self.tokens.labels(arm, "input"),
                output_tokens=self.tokens.labels(arm, "output"),
                cost=self.cost.labels(arm),
                cost_always=self.cost_always.labels(arm),
                first_token=self.first_token.labels(arm),
                duration=self.duration.labels(arm),
            )
        self._told.pool = pool
        self._told.budget_ratios = budget_ratios

    def request(self, arm: str, policy: str, path: str, code: int) -> Counter:
        """The series of `pika_requests_total` with these labels."""
        key = (arm, policy, path, code)
        if key not in self._requests:
            self._requests[key] = self.requests.labels(arm, policy, path, str(code))
        return self._requests[key]

    def count_flag(self, flag: str, times: int) -> None:
        """So many requests carried it."""
        self._flag_counters[flag].inc(times)

    def count_outcome(self, arm: str, correct: float) -> None:
        """Somebody says how right an answer was, 0 to 1."""
        judged = {0.0: "false", 1.0: "true"}.get(correct, "partly")
        self.outcomes.labels(arm, judged).inc()

    def observe_percentile(self, percentile: float | None) -> None:
        """Of a scored prompt; None where no probe has statistics."""
        if percentile is not None:
            self.percentile.observe(percentile)
            self._recent_percentiles.add(percentile)

    def render(self) -> bytes:
        """The exposition format's text; of all workers where there are several."""
        return generate_latest(self._scraped)

    def samples(self) -> Iterator[Sample]:
        """The same, one by one; takes a while, so not on the event loop."""
        for metric in self._scraped.collect():
            yield from metric.samples

    def _counter(self, name: str, help_: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, help_, labels, registry=self.registry)

    def _histogram(self, name: str, help_: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Histogram:
        return Histogram(name, help_, labels, buckets=buckets, registry=self.registry)


def drift_of(percentiles: Sequence[float] | FloatArray) -> float:
    """How far recent prompts' percentiles are from evenly spread, as they are for prompts like the training ones.

    The Kolmogorov-Smirnov distance, (n,) -> [0, 1]; 0 where there are fewer than `MIN_PROMPTS`.
    """
    n = len(percentiles)
    if n < MIN_PROMPTS:
        return 0.0
    shares = np.sort(np.asarray(percentiles)) / 100
    steps = np.arange(n + 1) / n
    return float(max((steps[1:] - shares).max(), (shares - steps[:-1]).max()))


class _Told(Collector):
    """What is read when scraped, so that it cannot go stale, and told once, however many workers there are."""

    pool: Pool | None = None
    budget_ratios: Callable[[], Mapping[str, float]] = dict
    """By key."""

    def __init__(self, recent_percentiles: Recent) -> None:
        self._recent_percentiles = recent_percentiles

    def collect(self) -> list[GaugeMetricFamily]:
        probes = GaugeMetricFamily(
            "pika_probe_info", "The probe that an arm is routed by.", labels=("probe", "revision")
        )
        of_replica = ("arm", "replica")
        up = GaugeMetricFamily("pika_replica_up", "Whether the last health check passed.", labels=of_replica)
        breaker_open = GaugeMetricFamily(
            "pika_breaker_open", "Whether the replica failed so often that it is left alone.", labels=of_replica
        )
        drift = GaugeMetricFamily(
            "pika_drift",
            "Largest gap between the shares of recent prompts and of known ones up to a percentile: 0 none, 1 all.",
            drift_of(self._recent_percentiles.values()),
        )
        if self.pool is not None:
            for labels in {(one.card.probe_name, one.revision): None for one in self.pool.artifacts}:
                probes.add_metric(labels, 1)
            for arm in self.pool.arms:
                for replica in arm.model.replicas:
                    up.add_metric((arm.name, replica.name), float(replica.healthy))
                    breaker_open.add_metric((arm.name, replica.name), float(replica.breaker.open))
        budgets = GaugeMetricFamily(
            "pika_budget_spent_ratio",
            "Share of its budget, of day or month the larger, that a key has spent or reserved.",
            labels=("key",),
        )
        for key, ratio in self.budget_ratios().items():
            budgets.add_metric((key,), ratio)
        return [probes, up, breaker_open, drift, budgets]
