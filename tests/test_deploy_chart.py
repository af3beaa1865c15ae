"""The Helm chart, rendered by Helm, judged by its linter and by the schemas that Kubernetes publishes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.deploy_tools import NEEDS_TOOLS, ChartError, rendered

pytestmark = NEEDS_TOOLS

ROOT = Path(__file__).parents[1]
CHART = ROOT / "docker/helm/pika-router"
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text()
ONE_PODS = (ROOT / "docker/gpu/pool.yaml").read_text()
"""Its ledger is SQLite."""
SQLITE = 'ledger: {url: "sqlite:////var/lib/pika/ledger.sqlite"}'
POOL = ONE_PODS.replace(SQLITE, "ledger: {url_env: PIKA_LEDGER_URL}")
"""What any number of pods may have."""
OLDEST, NEWEST = "1.25", "1.37"
EVERYTHING: dict[str, Any] = {
    "pool": POOL + "\nserver: {drain_s: 90.5, workers: 2}\n",
    "image": {"repository": "registry.example/pika", "tag": "1.2.3"},
    "imagePullSecrets": [{"name": "registry"}],
    "files": {"policy.tuned.json": '{"a": "b\\n"}\n'},
    "envFromSecrets": ["pika-keys"],
    "keysSecret": "pika-user-keys",
    "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
    "autoscaling": {"enabled": True, "inFlightPerPod": 50},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "service": {"type": "LoadBalancer", "annotations": {"a": "b"}},
    "cache": {"existingClaim": "probes"},
    "ledger": {"sizeLimit": "500Mi"},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "ml"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {}}
    ],
    "priorityClassName": "high",
}
Manifests = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def least() -> Manifests:
    return rendered(CHART, {"pool": POOL}, NEWEST)[0]


@pytest.fixture(scope="module", params=[OLDEST, NEWEST])
def everything(request: pytest.FixtureRequest) -> tuple[Manifests, str]:
    return rendered(CHART, EVERYTHING, request.param)


def pod(manifests: Manifests) -> dict[str, Any]:
    spec: dict[str, Any] = manifests["Deployment"]["spec"]["template"]["spec"]
    return spec


def test_a_pool_is_all_that_it_needs(least: Manifests) -> None:
    assert least.keys() == {"ConfigMap", "Deployment", "Service", "PodDisruptionBudget"}
    assert least["Deployment"]["spec"]["replicas"] == 2


def test_the_pool_and_what_lies_beside_it_arrive_byte_for_byte(everything: tuple[Manifests, str]) -> None:
    data = everything[0]["ConfigMap"]["data"]
    assert data == {"pool.yaml": EVERYTHING["pool"], **EVERYTHING["files"]}


def test_no_text_of_a_pool_breaks_the_chart() -> None:
    pool = "   # indented: {{ not a template }}\n\n" + POOL.replace("\n", "\r\n") + "\n\n# no newline at the end"
    assert rendered(CHART, {"pool": pool}, NEWEST)[0]["ConfigMap"]["data"]["pool.yaml"] == pool


def test_pods_run_without_rights_on_a_root_that_cannot_be_written(least: Manifests) -> None:
    [container] = pod(least)["containers"]
    assert pod(least)["securityContext"]["runAsNonRoot"] is True
    assert pod(least)["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    # The image's own user, and all places that it writes to.
    assert f"USER {pod(least)['securityContext']['runAsUser']}:" in DOCKERFILE
    volumes = {volume["name"]: volume for volume in pod(least)["volumes"]}
    writable = {one["mountPath"] for one in container["volumeMounts"] if "emptyDir" in volumes[one["name"]]}
    assert writable == {
        "/tmp",
        *re.findall(r"/var/\S+", DOCKERFILE.partition("install --directory")[2].splitlines()[0]),
    }


def test_it_is_asked_for_its_life_and_its_readiness(least: Manifests) -> None:
    [container] = pod(least)["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "liveness", "readiness")}
    assert probes == {"startup": "/health", "liveness": "/health", "readiness": "/ready"}
    [command] = [line.removeprefix("CMD ") for line in DOCKERFILE.splitlines()[-1:]]
    assert container["args"] == json.loads(command)  # as the image does it by itself
    assert [port["containerPort"] for port in container["ports"]] == [8000]
    assert least["Service"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


@pytest.mark.parametrize(
    ("server", "drain_s"), [("", 30), ("server: {drain_s: 90.5}", 91), ("server: {drain_s: 0}", 0)]
)
def test_open_requests_have_their_time_to_end(server: str, drain_s: int) -> None:
    manifests, _ = rendered(CHART, {"pool": f"{POOL}\n{server}\n", "preStopSeconds": 7}, NEWEST)
    assert pod(manifests)["terminationGracePeriodSeconds"] == 7 + drain_s + 10
    assert pod(manifests)["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "7"]


def test_another_pool_rolls_the_pods(least: Manifests, everything: tuple[Manifests, str]) -> None:
    sums = [
        one["Deployment"]["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
        for one in (least, everything[0])
    ]
    assert sums[0] != sums[1]


def test_all_options_are_rendered_and_valid(everything: tuple[Manifests, str]) -> None:
    manifests, notes = everything
    [container] = pod(manifests)["containers"]
    assert container["image"] == "registry.example/pika:1.2.3"
    assert container["envFrom"] == [{"secretRef": {"name": "pika-keys"}}]
    assert {"name": "cache", "persistentVolumeClaim": {"claimName": "probes"}} in pod(manifests)["volumes"]
    for key in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "topologySpreadConstraints"):
        assert pod(manifests)[key] == EVERYTHING[key]
    assert "replicas" not in manifests["Deployment"]["spec"]  # the autoscaler's
    scaler = manifests["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == manifests["Deployment"]["metadata"]["name"]
    assert scaler["metrics"][0]["pods"] == {
        "metric": {"name": "pika_in_flight"},
        "target": {"type": "AverageValue", "averageValue": "50"},
    }
    assert manifests["ServiceMonitor"]["metadata"]["labels"]["release"] == "prometheus"
    assert "what asks for no key is /health, /ready and /metrics" in notes
    assert {"name": "keys", "mountPath": "/etc/pika-keys", "readOnly": True} in container["volumeMounts"]
    assert {"name": "keys", "secret": {"secretName": "pika-user-keys", "defaultMode": 0o440}} in pod(manifests)[
        "volumes"
    ]


def test_who_lets_everybody_ask_is_told() -> None:
    _, notes = rendered(CHART, {"pool": POOL, "service": {"type": "LoadBalancer"}}, NEWEST)
    assert "nothing asks for a key" in notes


def test_where_the_dashboard_is_is_told() -> None:
    assert POOL.count("\nadmin:") == 1
    for pool, asks in [(POOL, True), (POOL.replace("\nadmin:", "\n# admin:"), False)]:
        _, notes = rendered(CHART, {"pool": pool}, NEWEST)
        assert "http://127.0.0.1:8000/dashboard" in notes
        assert ("asks for the admin key" in notes) == asks


@pytest.mark.parametrize(
    ("claim", "source", "strategy"),
    [
        ("", {"emptyDir": {"sizeLimit": "10Gi"}}, {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}),
        ("decisions", {"persistentVolumeClaim": {"claimName": "decisions"}}, {"type": "Recreate"}),
    ],
)
def test_one_pod_keeps_a_ledger_in_sqlite(claim: str, source: dict[str, Any], strategy: dict[str, Any]) -> None:
    values = {"pool": ONE_PODS, "replicaCount": 1, "ledger": {"existingClaim": claim}}
    manifests, notes = rendered(CHART, values, NEWEST)
    assert {"name": "ledger", **source} in pod(manifests)["volumes"]
    [mount] = [one for one in pod(manifests)["containers"][0]["volumeMounts"] if one["name"] == "ledger"]
    assert yaml.safe_load(ONE_PODS)["ledger"]["url"].startswith(f"sqlite:///{mount['mountPath']}/")
    assert not mount.get("readOnly")
    # Two pods on two nodes would wait for one another.
    assert manifests["Deployment"]["spec"]["strategy"] == strategy
    assert ("goes with its pod" in notes) == (claim == "")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"replicaCount": 3},
        {"replicaCount": 1, "autoscaling": {"enabled": True}},
        {"ledger": {"existingClaim": "decisions"}},
    ],
)
@pytest.mark.parametrize("ledger", [SQLITE, "ledger: {}", "ledger: {keep_days: 7}"])
def test_pods_that_would_not_share_their_ledger_are_refused(values: dict[str, Any], ledger: str) -> None:
    with pytest.raises(ChartError, match=r"PIKA_LEDGER_URL.*replicaCount=1"):
        rendered(CHART, {"pool": ONE_PODS.replace(SQLITE, ledger), **values}, NEWEST)


@pytest.mark.parametrize("ledger", ["ledger: {}", "ledger: {url: 'sqlite:///near.sqlite'}"])
def test_a_ledger_beside_the_pool_which_cannot_be_written_is_refused(ledger: str) -> None:
    with pytest.raises(ChartError, match=r"sqlite:////var/lib/pika/ledger\.sqlite"):
        rendered(CHART, {"pool": ONE_PODS.replace(SQLITE, ledger), "replicaCount": 1}, NEWEST)


@pytest.mark.parametrize("ledger", ["", "ledger:", "ledger: {url: 'postgresql://pika@postgres/pika'}"])
def test_any_number_of_pods_may_share_what_is_not_sqlite(ledger: str) -> None:
    values = {"pool": ONE_PODS.replace(SQLITE, ledger), "autoscaling": {"enabled": True}}
    manifests, notes = rendered(CHART, values, NEWEST)
    assert "HorizontalPodAutoscaler" in manifests
    assert "goes with its pod" not in notes


def test_all_of_them_find_the_pods(everything: tuple[Manifests, str]) -> None:
    manifests, _ = everything
    labels = manifests["Deployment"]["spec"]["template"]["metadata"]["labels"]
    selectors = [
        manifests["Service"]["spec"]["selector"],
        *(manifests[kind]["spec"]["selector"]["matchLabels"] for kind in ("Deployment", "PodDisruptionBudget")),
    ]
    assert all(selector.items() <= labels.items() for selector in selectors)
    monitored = manifests["ServiceMonitor"]["spec"]
    assert monitored["selector"]["matchLabels"].items() <= manifests["Service"]["metadata"]["labels"].items()
    assert monitored["endpoints"][0]["port"] == manifests["Service"]["spec"]["ports"][0]["name"]


def test_the_service_monitor_says_what_the_operator_reads(everything: tuple[Manifests, str]) -> None:
    """By hand: Kubernetes has no schema of it. https://prometheus-operator.dev/docs/api-reference/api/"""
    monitor = everything[0]["ServiceMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert monitor["spec"].keys() == {"selector", "endpoints"}
    assert monitor["spec"]["selector"].keys() == {"matchLabels"}
    assert monitor["spec"]["endpoints"] == [{"port": "http", "path": "/metrics", "interval": "15s"}]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "pool"),
        ({"pool": "models"}, "pool.yaml"),
        ({"pool": "a: ["}, "pool.yaml"),
        ({"pool": POOL, "replicaCounts": 3}, "replicaCounts"),
        ({"pool": POOL, "ledger": {"existingClaims": "a"}}, "existingClaims"),
        ({"pool": POOL, "replicaCount": "three"}, "replicaCount"),
        ({"pool": POOL, "autoscaling": {"enabled": True, "min": 1}}, "min"),
        ({"pool": POOL, "service": {"port": 99999}}, "port"),
        ({"pool": POOL, "serviceMonitor": {"interval": "15 seconds"}}, "interval"),
        ({"pool": POOL, "image": {"repository": ""}}, "repository"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ChartError, match=says):
        rendered(CHART, values, NEWEST)


def test_the_charts_version_is_the_projects() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert f'version = "{chart["appVersion"]}"' in (ROOT / "pyproject.toml").read_text()
