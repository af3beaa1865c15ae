"""docs/metrics.md: every series of /metrics, from the registry, and what its labels are."""

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.metrics_core import Metric

from probes.engine.wire import LOOKUPS
from server.metrics import ATTEMPT_OUTCOMES, FLAGS, REFUSALS, Metrics
from server.reference.configuration import UndocumentedError
from server.routing.trial_metrics import GROUPS

HEAD = """\
# Metrics

<!-- Written by `python -m server.reference` from the code: change the series there, these words beside it. -->

`GET /metrics` is in Prometheus' text format; with several workers any of them tells the sum over all, that
of the others a tenth of a second old; so much of its counts a killed worker takes with it. Labels are bounded by the
configuration, counters exist at zero from the start and go on over a reload. A histogram's series end in `_bucket`,
`_sum` and `_count`. [docker/prometheus](../docker/prometheus/alerts.yml) has alerts on these, with unit tests, and
[docker/grafana](../docker/grafana/dashboards/pika.json) a dashboard.

## Queries worth a panel

Saved so far, against always using `nano-large`, as a share:

    1 - (sum(pika_cost_usd_total) + pika_probe_cost_usd_total) / sum(pika_cost_always_usd_total{arm="nano-large"})

Expected accuracy of what was answered in the last hour, beside each arm's share:

    sum(increase(pika_expected_correct_total[1h])) / sum(increase(pika_success_probability_count[1h]))
    sum by (arm) (rate(pika_requests_total[1h])) / scalar(sum(rate(pika_requests_total[1h])))

What routing adds before a request goes upstream, 99th percentile; whether probabilities still come true:

    histogram_quantile(0.99, sum by (le) (rate(pika_routing_seconds_bucket[5m])))
    max by (arm) (pika_calibration_error)
"""


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(f"`{value}`" for value in values)


LABELS = {
    "arm": "an arm of the configuration; `none` for /score and /route, and where an error came before any was chosen",
    "policy": "the policy by its name; `none` as for `arm`",
    "path": "how the arm came to be chosen, as in [x-pika-path](api.md#response-headers)",
    "code": f"HTTP code; of `pika_refused_total` one of {_listed(REFUSALS)}",
    "flag": _listed(FLAGS),
    "kind": "`input`, `output`",
    "outcome": f"of an attempt: {_listed(ATTEMPT_OUTCOMES)}",
    "result": f"of a look into the cache: {_listed(tuple(LOOKUPS))}; of a reload: `done`, `refused`",
    "replica": "host and port of a model's replica",
    "probe": "the probe by its name",
    "revision": "the commit of a probe from the Hub, or a hash of its files",
    "group": f"of a canary: {_listed(GROUPS)}",
    "correct": "`true`, `false`, `partly`",
    "key": "a user's key by its name",
}


def page() -> str:
    """
    Raises:
        UndocumentedError: a label is not described here.
    """
    families = _families()
    rows = ["| series | labels | type | meaning |", "| --- | --- | --- | --- |"]
    for name, kind, labels, help_ in families:
        unknown = set(labels) - set(LABELS)
        if unknown:
            raise UndocumentedError(
                f"{name}: say in LABELS of server/reference/metrics.py what the label {unknown.pop()!r} is"
            )
        rows.append(f"| `{name}` | {_listed(labels)} | {kind} | {help_.replace('|', chr(92) + '|')} |")
    used = {label for _, _, labels, _ in families for label in labels}
    told = [f"| `{label}` | {meaning} |" for label, meaning in LABELS.items() if label in used]
    labels_table = "\n".join(["| label | values |", "| --- | --- |", *told])
    return f"{HEAD}\n## Series\n\n{chr(10).join(rows)}\n\n## Labels\n\n{labels_table}\n"


def _families() -> list[tuple[str, str, tuple[str, ...], str]]:
    """Name as queries have it, type, labels and help of each."""
    found = []
    # The library tells labels of a series only once there is one: its own record is read instead.
    for collector in Metrics().registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            metrics: list[Metric] = list(collector.describe())
            labels = tuple(collector._labelnames)
        else:
            metrics, labels = list(collector.collect()), ()
        for metric in metrics:
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            found.append((name, metric.type, labels or tuple(getattr(metric, "_labelnames", ())), metric.documentation))
    return found
