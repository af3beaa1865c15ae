"""An arm's metric series and response headers, looked up and encoded once: requests only count."""

from prometheus_client import Counter

from server.metrics import ATTEMPT_OUTCOMES, Metrics
from server.pool import Arm


class ArmSeries:
    """What every request to one arm touches."""

    def __init__(self, metrics: Metrics, arm: Arm) -> None:
        self.in_flight = metrics.in_flight.labels(arm.name)
        self.attempts = {outcome: metrics.attempts.labels(arm.name, outcome) for outcome in ATTEMPT_OUTCOMES}
        self.first_token = metrics.first_token.labels(arm.name)
        self.duration = metrics.duration.labels(arm.name)
        self.success = metrics.success.labels(arm.name)
        self.expected_correct = metrics.expected_correct.labels(arm.name)
        self.input_tokens = metrics.tokens.labels(arm.name, "input")
        self.output_tokens = metrics.tokens.labels(arm.name, "output")
        self.cost = metrics.cost.labels(arm.name)
        self.cost_always = metrics.cost_always.labels(arm.name)
        self.headers = [
            (b"x-pika-arm", arm.name.encode()),
            (b"x-model-router-selected-model", arm.model.name.encode()),
        ]
        if arm.probe_name is not None:
            self.headers.append((b"x-pika-probe", arm.probe_name.encode("latin-1", "replace")))
        self._name = arm.name
        self._requests = metrics.requests
        self._by_result: dict[tuple[str, str, int], Counter] = {}

    def requests(self, policy: str, path: str, code: int) -> Counter:
        """Requests that ended so; there are as many as policies, paths and HTTP codes."""
        key = (policy, path, code)
        counter = self._by_result.get(key)
        if counter is None:
            counter = self._by_result[key] = self._requests.labels(self._name, policy, path, str(code))
        return counter
