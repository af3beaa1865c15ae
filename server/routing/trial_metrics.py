"""What trials come to: both groups of a canary, and what shadow mode would have done."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter

from server.pool import Pool
from server.routing.session import Group

if TYPE_CHECKING:
    from server.routing.decision import Decision

GROUPS: tuple[Group, ...] = get_args(Group)


class TrialMetrics:
    """Series without labels' values until `follow` says what is tried."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, help_: str, labels: Sequence[str]) -> Counter:
            return Counter(name, help_, labels, registry=registry)

        self.requests = counter(
            "pika_canary_requests",
            "Requests that took part in a trial of a policy, by HTTP code: `canary` went by the candidate.",
            ("group", "code"),
        )
        self.cost = counter("pika_canary_cost_usd", "Cost of their answers, usage times prices.", ("group",))
        self.expected_correct = counter(
            "pika_canary_expected_correct", "Sum of success probabilities of their answers.", ("group",)
        )
        self.shadow_requests = counter(
            "pika_shadow_requests", "Answers in shadow mode, by the arm that would have been chosen.", ("arm",)
        )
        self.shadow_cost = counter(
            "pika_shadow_cost_usd",
            "What these arms' answers would have cost, estimated from mean output tokens where another arm answered.",
            ("arm",),
        )
        self.shadow_paid = counter("pika_shadow_paid_usd", "What answers in shadow mode did cost.", ())
        self.shadow_expected_correct = counter(
            "pika_shadow_expected_correct",
            "Sum of success probabilities of the arms that would have been chosen.",
            ("arm",),
        )

    def follow(self, pool: Pool, canary: bool, shadow: bool) -> None:
        """Counters exist at zero from the start of a trial."""
        for group in GROUPS if canary else ():
            self.requests.labels(group, "200")
            self.cost.labels(group)
            self.expected_correct.labels(group)
        for name in pool.names if shadow else ():
            for series in (self.shadow_requests, self.shadow_cost, self.shadow_expected_correct):
                series.labels(name)

    def count(self, decision: "Decision", code: int) -> None:
        """A request is over."""
        if decision.group is not None:
            self.requests.labels(decision.group, str(code)).inc()

    def count_answer(self, pool: Pool, decision: "Decision", usage: tuple[int, int] | None) -> None:
        """
        Args:
            usage: input and output tokens as the upstream counted them; None where it did not.
        """
        arm = pool.arms[decision.arm]
        if decision.group is not None:
            self.expected_correct.labels(decision.group).inc(decision.success_probability or 0.0)
            if usage is not None:
                self.cost.labels(decision.group).inc(arm.cost_usd(*usage))
        if decision.path == "shadow":
            would = pool.arms[decision.policy_arm]
            self.shadow_requests.labels(would.name).inc()
            known = decision.prediction.success[decision.policy_arm]
            if known == known:  # no NaN
                self.shadow_expected_correct.labels(would.name).inc(float(known))
            if usage is not None:
                inputs, outputs = usage
                estimated = outputs if decision.policy_arm == decision.arm else would.mean_output_tokens
                self.shadow_cost.labels(would.name).inc(would.cost_usd(inputs, estimated))
                self.shadow_paid.inc(arm.cost_usd(inputs, outputs))
