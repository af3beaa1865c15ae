"""What a gateway without a ledger can tell: what it has counted since it started."""

from collections import defaultdict
from collections.abc import Sequence

from server.dashboard.money import ArmTotal, Totals
from server.dashboard.shares import share
from server.metrics import Metrics


def read_counted(metrics: Metrics, names: Sequence[str]) -> Totals:
    """
    Args:
        names: the pool's arms; what earlier pools' arms did is left out.
    """
    sums: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    """By series and arm."""
    errors: dict[str, float] = defaultdict(float)
    for sample in metrics.samples():
        sums[sample.name][sample.labels.get("arm", "")] += sample.value
        if sample.name == "pika_requests_total" and sample.labels["code"] != "200":
            errors[sample.labels["arm"]] += sample.value
    probe_usd = sums["pika_probe_cost_usd_total"][""]
    requests, cost, always = (sums[f"pika_{name}_total"] for name in ("requests", "cost_usd", "cost_always_usd"))
    spent = probe_usd + sum(cost[name] for name in names)
    return Totals(
        arms=tuple(
            ArmTotal(
                name=name,
                requests=int(requests[name]),
                errors=int(errors[name]),
                cost_usd=cost[name],
                always_usd=always[name],
                saved_usd=always[name] - spent,
                saved_share=1 - spent / always[name] if always[name] else None,
            )
            for name in names
        ),
        requests=int(sum(requests[name] for name in names)),
        errors=int(sum(errors[name] for name in names)),
        pinned=None,
        spent_usd=spent,
        probe_usd=probe_usd,
        expected=share(
            sum(sums["pika_expected_correct_total"].values()), int(sum(sums["pika_success_probability_count"].values()))
        ),
        observed=share(0, 0),
        ways=(),
    )
