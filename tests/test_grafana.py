"""Every query of the dashboard, and every alert, asked of a real Prometheus that scrapes a live gateway."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.app import create_app
from server.launch.vllm_server import free_port
from server.ledger.section import Ledger
from server.sections.policy import Policy
from server.sections.routing import Canary, Shadow
from server.sections.serving import Keys
from tests.support import upstream as faults
from tests.support.dashboard import add_past
from tests.support.gateway import nano_pool, serving
from tests.support.keys import new_key
from tests.support.processes import until

DOCKER = Path(__file__).parents[1] / "docker"
DASHBOARD = json.loads((DOCKER / "grafana/dashboards/pika.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [
    pytest.param(target["expr"], target["legendFormat"], id=f"{panel['title']}, {target['refId']}")
    for panel in PANELS
    for target in panel["targets"]
]
NEEDS_PROMETHEUS = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (Debian's package prometheus)"
)
NEEDS_PROMTOOL = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian's package prometheus)"
)


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Configured as in the compose file, but for whom it scrapes, and that it does so twice a second."""
    config = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "1s"}
    config["rule_files"] = [str(DOCKER / "prometheus" / name) for name in config["rule_files"]]
    [job] = config["scrape_configs"]
    job["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(command, stderr=log) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client,
    ):
        try:
            until(lambda: is_ready(client) or process.poll() is not None, 30, "Prometheus is ready")
            assert process.poll() is None, (folder / "log").read_text()
            yield client
        finally:
            process.terminate()
            process.wait(timeout=30)


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").is_success
    except httpx.TransportError:
        return False


def ask(client: httpx.Client, query: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each series, those left out whose value is no number."""
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    found = [(one["metric"], float(one["value"][1])) for one in answer["data"]["result"]]
    return [(labels, value) for labels, value in found if not math.isnan(value)]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, str]]:
    """Prometheus, and the exposition after it saw requests: routed, streamed, pinned, repeated, refused, judged; and
    audits of the hour before."""
    folder = tmp_path_factory.mktemp("prometheus")
    ledger = f"sqlite:///{folder}/ledger.sqlite"
    headers = new_key(folder / "keys.yaml", "team", usd_per_day=1)
    sections = {
        "keys": Keys(file=str(folder / "keys.yaml")),
        "ledger": Ledger(url=ledger),
        "canary": Canary(share=0.5, policy=Policy(name="min_cost")),
        "shadow": Shadow(arm="nano-large"),
    }
    with (
        faults.running(faults.answers) as upstream,
        serving(create_app(nano_pool(upstream.url).model_copy(update=sections))) as base,
        prometheus(folder, base.removeprefix("http://")) as client,
    ):
        until(lambda: bool(ask(client, "pika_requests_total")), 30, "Prometheus has seen the counters at zero")
        models = ("auto", "auto", "nano-small", "auto-min_cost", "no-such-model")
        for number, model in enumerate(models * 4):
            messages = [{"role": "user", "content": f"Begin with {number % 7}. Add 1."}]
            body = {"model": model, "stream": number % 2 == 0, "messages": messages}
            answer = httpx.post(f"{base}/v1/chat/completions", json=body, headers=headers, timeout=30)
            if model == "auto":
                outcome = {"id": answer.headers["x-request-id"], "correct": number % 3 > 0}
                httpx.post(f"{base}/v1/outcomes", json=outcome, headers=headers, timeout=30).raise_for_status()
        add_past(ledger).close()
        exposition = httpx.get(f"{base}/metrics", timeout=10).text
        seen = " and ".join((
            "sum(pika_requests_total) == 20",
            "sum(pika_probe_batch_prompts_sum) > 0",
            "sum(pika_outcomes_total) == 8",
            "count(pika_audited_accuracy) == 3",
        ))  # fmt: skip
        until(lambda: bool(ask(client, seen)), 30, "Prometheus has seen all requests")
        yield client, exposition


@NEEDS_PROMETHEUS
@pytest.mark.parametrize(("query", "legend"), QUERIES)
def test_every_query_of_every_panel_returns_data(live: tuple[httpx.Client, str], query: str, legend: str) -> None:
    found = ask(live[0], query.replace("$__rate_interval", "1m").replace("$__range", "1h"))
    assert found, "no data"
    for label in re.findall(r"\{\{(\w+)\}\}", legend):
        assert all(label in labels for labels, _ in found), f"the legend shows {label!r}, which no series has"


@NEEDS_PROMETHEUS
def test_what_marks_alerts_in_the_charts_is_understood(live: tuple[httpx.Client, str]) -> None:
    """Nothing fires, so there is nothing to mark; `ask` fails where Prometheus cannot read the query."""
    [annotation] = DASHBOARD["annotations"]["list"]
    assert ask(live[0], annotation["expr"]) == []
    [every] = re.findall(r'alertname=~"(.+?)"', annotation["expr"])
    for name in re.findall(r"- alert: (\w+)", (DOCKER / "prometheus/alerts.yml").read_text()):
        assert re.fullmatch(every, name)


@NEEDS_PROMETHEUS
def test_the_saving_shown_is_the_saving(live: tuple[httpx.Client, str]) -> None:
    client, exposition = live
    counted: dict[str, list[float]] = {}
    for name, value in re.findall(r"^(pika_\w+_usd_total)(?:\{.*\})? (\S+)$", exposition, re.MULTILINE):
        counted.setdefault(name, []).append(float(value))
    spent = sum(counted["pika_cost_usd_total"]) + sum(counted["pika_probe_cost_usd_total"])
    expected = 1 - spent / max(counted["pika_cost_always_usd_total"])
    [shown] = [panel for panel in PANELS if panel["title"] == "Saved"]
    [(_, value)] = ask(client, shown["targets"][0]["expr"].replace("$__range", "1h"))
    assert value == pytest.approx(expected, abs=1e-6)


@NEEDS_PROMETHEUS
def test_every_alert_is_judged_and_none_fires_on_a_gateway_that_is_well(live: tuple[httpx.Client, str]) -> None:
    client, exposition = live

    def rules() -> list[dict[str, Any]]:
        [group] = client.get("/api/v1/rules").json()["data"]["groups"]
        return list(group["rules"])

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), 30, "all rules are evaluated")
    assert {rule["name"]: (rule["health"], rule["state"]) for rule in rules()} == {
        rule["name"]: ("ok", "inactive") for rule in rules()
    }
    for rule in rules():
        for series in re.findall(r"pika_\w+", rule["query"]):
            assert re.search(rf"^{series}[{{ ]", exposition, re.MULTILINE), f"{rule['name']}: nothing is named {series}"


@NEEDS_PROMTOOL
def test_alerts_pass_their_unit_tests() -> None:
    folder = DOCKER / "prometheus"
    for command in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(["promtool", *command], cwd=folder, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_unit_test_that_it_fires() -> None:
    rules = yaml.safe_load((DOCKER / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    tests = yaml.safe_load((DOCKER / "prometheus/alerts_test.yml").read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == {rule["alert"] for rule in rules}
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == {rule["alert"] for rule in rules}


def test_what_an_operator_is_promised_is_shown() -> None:
    """By the series that a panel asks for, whatever it is called."""
    asked = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    promised = {
        "savings": {"pika_cost_usd_total", "pika_cost_always_usd_total", "pika_probe_cost_usd_total"},
        "accuracy": {"pika_expected_correct_total", "pika_outcomes_total", "pika_audited_accuracy"},
        "calibration": {"pika_calibration_error", "pika_brier"},
        "routing mix": {"pika_requests_total", "pika_flags_total"},
        "latency split": {"pika_routing_seconds", "pika_time_to_first_token_seconds", "pika_request_seconds"},
        "engine queue": {"pika_probe_queue_seconds", "pika_probe_batch_prompts"},
        "replicas": {"pika_replica_up", "pika_breaker_open", "pika_in_flight"},
        "budgets": {"pika_budget_spent_ratio"},
    }
    for what, series in promised.items():
        missing = {one for one in series if not re.search(rf"\b{one}(_bucket|_sum|_count)?\b", asked)}
        assert not missing, what


def test_grafana_finds_dashboards_and_source_where_compose_mounts_them() -> None:
    grafana = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["grafana"]
    mounts = {target: DOCKER / source for source, target, *_ in (one.split(":") for one in grafana["volumes"])}
    assert mounts["/etc/grafana/provisioning"] == DOCKER / "grafana/provisioning"
    [provider] = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/pika.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    [dashboard] = mounts[provider["options"]["path"]].glob("*.json")
    assert json.loads(dashboard.read_text()) == DASHBOARD
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (home.name, str(home.parent)) == (dashboard.name, provider["options"]["path"])


def test_panels_explain_themselves_ask_the_provisioned_source_and_do_not_overlap() -> None:
    provisioned = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    sources = {source["uid"] for source in provisioned["datasources"]}
    places = []
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        places.append((place["x"], place["y"], place["x"] + place["w"], place["y"] + place["h"]))
    for a, b in combinations(places, 2):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1], (a, b)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in PANELS:
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} <= sources
