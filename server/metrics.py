"""Every Prometheus series, unit in its name. Labels are bounded by the configuration."""

from collections.abc import Sequence

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

from server.pool import Pool

# Half of the exposition would tell when each counter was made, which is when we started.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library leaves it untyped

FLAGS = ("infeasible", "truncated", "text-only", "tools-unseen", "policy-changed", "uncalibrated")
ATTEMPT_OUTCOMES = ("ok", "client_error", "server_error", "connect_error", "timeout", "broken", "cancelled")
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
OVERHEAD_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
PROBABILITIES = tuple(i / 20 for i in range(1, 21))
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
TOKENS = (64, 256, 1024, 4096, 16384, 65536)


class Metrics:
    """The series of one gateway, in a registry of its own."""

    def __init__(self, pool: Pool, default_policy: str) -> None:
        self.registry = CollectorRegistry()
        arms = [arm.name for arm in pool.arms]
        self.requests = self._counter(
            "pika_requests", "Requests answered, by HTTP code; arm is `none` where none was chosen.",
            ("arm", "policy", "path", "code"),
        )  # fmt: skip
        for arm in arms:
            self.requests.labels(arm, default_policy, "routed", "200")
        self.flags = self._counter("pika_flags", "Requests that carried a flag.", ("flag",), FLAGS)
        self.tokens = self._counter("pika_tokens", "Tokens by the upstream's usage.", ("arm", "kind"))
        for arm in arms:
            self.tokens.labels(arm, "input")
            self.tokens.labels(arm, "output")
        self.cost = self._counter("pika_cost_usd", "Cost of answers, usage times prices.", ("arm",), arms)
        self.probe_cost = self._counter("pika_probe_cost_usd", "Cost of the probe models' prefill.", ())
        self.cost_always = self._counter(
            "pika_cost_always_usd", "What always using this arm would have cost, estimated from mean output tokens.",
            ("arm",), arms,
        )  # fmt: skip
        self.expected_correct = self._counter(
            "pika_expected_correct", "Sum of success probabilities of scored, answered requests.", ("arm",), arms
        )
        self.success = self._histogram(
            "pika_success_probability", "Success probability of the chosen arm.", ("arm",), PROBABILITIES, arms
        )
        self.routing = self._histogram(
            "pika_routing_seconds", "From the whole request read to its dispatch upstream.", (), OVERHEAD_SECONDS
        )
        self.first_token = self._histogram(
            "pika_time_to_first_token_seconds", "From the whole request read to the first byte of a stream.", ("arm",),
            SECONDS, arms,
        )  # fmt: skip
        self.duration = self._histogram("pika_request_seconds", "Whole requests.", ("arm",), SECONDS, arms)
        self.attempts = self._counter("pika_upstream_attempts", "Upstream attempts.", ("arm", "outcome"))
        for arm in arms:
            for outcome in ATTEMPT_OUTCOMES:
                self.attempts.labels(arm, outcome)
        self.in_flight = Gauge("pika_in_flight", "Requests now with an upstream.", ("arm",), registry=self.registry)
        for arm in arms:
            self.in_flight.labels(arm)
        self.queue_s = self._histogram(
            "pika_probe_queue_seconds", "Wait of a micro-batch's first prompt.", (), OVERHEAD_SECONDS
        )
        self.batch_prompts = self._histogram("pika_probe_batch_prompts", "Prompts per micro-batch.", (), COUNTS)
        self.batch_tokens = self._histogram(
            "pika_probe_batch_tokens", "Tokens per micro-batch, padding left out.", (), TOKENS
        )
        self.padding = self._counter("pika_probe_padding_tokens", "Padding computed for nothing.", ())
        info = Gauge(
            "pika_probe_info", "The probe that an arm is routed by.", ("probe", "revision"), registry=self.registry
        )
        for artifact in pool.artifacts:
            info.labels(artifact.card.probe_name, artifact.revision).set(1)
        self.registry.register(_Replicas(pool))

    def render(self) -> bytes:
        """The exposition format's text."""
        return generate_latest(self.registry)

    def _counter(self, name: str, help_: str, labels: Sequence[str], values: Sequence[str] = ()) -> Counter:
        counter = Counter(name, help_, labels, registry=self.registry)
        for value in values:
            counter.labels(value)
        return counter

    def _histogram(
        self, name: str, help_: str, labels: Sequence[str], buckets: Sequence[float], values: Sequence[str] = ()
    ) -> Histogram:
        histogram = Histogram(name, help_, labels, buckets=buckets, registry=self.registry)
        for value in values:
            histogram.labels(value)
        return histogram


class _Replicas(Collector):
    """Health is read when scraped, so that it cannot go stale here."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def collect(self) -> list[GaugeMetricFamily]:
        up = GaugeMetricFamily("pika_replica_up", "Whether the last health check passed.", labels=("arm", "replica"))
        for arm in self.pool.arms:
            for replica in arm.model.replicas:
                up.add_metric((arm.name, replica.name), float(replica.healthy))
        return [up]
