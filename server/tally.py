"""What every answered request counts, in plain numbers, and passed to the metrics now and then.

The library's counters take a lock each, and its histograms go through their buckets one by one: for all that a request
counts, a twentieth of its time. What few requests count, counts there at once.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

from prometheus_client import Histogram

from server.metrics import Metrics
from server.pool import Arm


class Spread:
    """Observations of a histogram."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_sum")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds: list[float] = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._sum += value
        self._counts[bisect_left(self._bounds, value)] += 1

    def pass_on(self) -> float:
        """Returns the sum of what was observed."""
        counts, total = self._counts, self._sum
        if any(counts):
            self._counts, self._sum = [0] * len(counts), 0.0
            # The library has no public way to take several observations at once.
            self._histogram._sum.inc(total)
            for bucket, count in zip(self._histogram._buckets, counts, strict=True):
                if count:
                    bucket.inc(count)
        return total


class Tally:
    """What went to one arm.

    Args:
        arm: index of the arm.
        arms: all of the pool.
        metrics: they follow this pool.
    """

    __slots__ = (
        "_answers", "_arm", "_arms", "_inputs", "_metrics", "_outputs", "_series", "attempts", "duration",
        "first_token", "flags", "in_flight", "requests", "routing", "success",
    )  # fmt: skip

    def __init__(self, arm: int, arms: Sequence[Arm], metrics: Metrics) -> None:
        self._arm = arm
        self._arms = arms
        self._metrics = metrics
        self._series = [metrics.arms[one.name] for one in arms]
        self._answers = self._inputs = self._outputs = 0
        own = self._series[arm]
        self.in_flight = 0
        """More, or fewer, than the metrics say."""
        self.requests: Counter[tuple[str, str, int]] = Counter()
        """Those that are over, by policy, path and HTTP code."""
        self.attempts: Counter[str] = Counter()
        """By outcome."""
        self.flags: Counter[str] = Counter()
        """How many requests carried each."""
        self.routing = Spread(metrics.routing)
        self.first_token = Spread(own.first_token)
        self.duration = Spread(own.duration)
        self.success = Spread(own.success)

    def answer(self, input_tokens: int, output_tokens: int) -> None:
        """One whose usage is known."""
        self._answers += 1
        self._inputs += input_tokens
        self._outputs += output_tokens

    def pass_on(self) -> None:
        """Have the metrics say what has been counted since they last did; on the event loop, where it is counted."""
        own = self._series[self._arm]
        if self.in_flight:
            own.in_flight.inc(self.in_flight)
            self.in_flight = 0
        for (policy, path, code), count in self.requests.items():
            self._metrics.request(self._arms[self._arm].name, policy, path, code).inc(count)
        for outcome, count in self.attempts.items():
            own.attempts[outcome].inc(count)
        for flag, count in self.flags.items():
            self._metrics.count_flag(flag, count)
        for counted in (self.requests, self.attempts, self.flags):
            counted.clear()
        for spread in (self.routing, self.first_token, self.duration):
            spread.pass_on()
        own.expected_correct.inc(self.success.pass_on())
        if self._answers:
            self._pass_on_cost()

    def _pass_on_cost(self) -> None:
        answers, inputs, outputs = self._answers, self._inputs, self._outputs
        self._answers = self._inputs = self._outputs = 0
        own = self._series[self._arm]
        own.input_tokens.inc(inputs)
        own.output_tokens.inc(outputs)
        own.cost.inc(self._arms[self._arm].cost_usd(inputs, outputs))
        for i, (arm, series) in enumerate(zip(self._arms, self._series, strict=True)):
            always = outputs if i == self._arm else answers * arm.mean_output_tokens
            series.cost_always.inc(arm.cost_usd(inputs, always))
