"""The compose file, as Compose itself reads it, beside the pools that its gateways serve."""

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from server.config import Settings, load, pool_sha256
from server.launch.vllm_server import plan
from tests.support.deploy_tools import NEEDS_TOOLS, ComposeError, composed
from tests.support.dockerfile import environment

pytestmark = NEEDS_TOOLS

DOCKER = Path(__file__).parents[1] / "docker"
NANO_POOL = DOCKER.parent / "offline/nano_pool"
COMPOSE = DOCKER / "compose.yaml"
PROFILES = ("nano", "gpu")
SECRETS = {"PIKA_ADMIN_KEY": "0123456789abcdef"}
"""Without which no profile starts."""
Services = dict[str, dict[str, Any]]


@pytest.fixture(scope="module", params=PROFILES)
def profile(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def services(profile: str) -> Services:
    found: Services = composed(COMPOSE, profile, SECRETS)["services"]
    return found


@pytest.fixture(scope="module")
def pool(profile: str) -> Settings:
    return load(DOCKER / profile / "pool.yaml")


def vllm_servers(services: Services) -> Services:
    return {name: one for name, one in services.items() if "vllm" in one["image"]}


def test_every_service_is_bounded_and_comes_back(services: Services) -> None:
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "memory" in service["deploy"]["resources"]["limits"], name
        assert "max-size" in service["logging"]["options"], name
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"]), name
        built = service.get("build", {}).get("dockerfile") == "docker/Dockerfile"  # it has a health check of its own
        assert built or "healthcheck" in service, name
        assert service.get("read_only") or service["image"].startswith("vllm/"), name


def test_what_is_published_is_published_on_loopback(services: Services) -> None:
    published = {name: port for name, one in services.items() for port in one.get("ports", [])}
    assert {port["host_ip"] for port in published.values()} == {"127.0.0.1"}
    assert sorted(port["target"] for port in published.values()) == [3000, 8000, 9090]


def test_no_secret_stands_in_the_file(services: Services) -> None:
    for service in services.values():
        for variable, value in service.get("environment", {}).items():
            if re.search("TOKEN|SECRET|PASSWORD|KEY", variable):
                assert value == SECRETS.get(variable), variable  # as the environment has it


def test_whoever_comes_through_a_published_port_can_open_the_dashboard(
    profile: str, services: Services, pool: Settings
) -> None:
    gateway = services[f"gateway-{profile}"]
    assert gateway["ports"]
    assert pool.admin is not None, "from the bridge's address nobody is let in without a key"
    assert gateway["environment"][pool.admin.key_env] == SECRETS[pool.admin.key_env]


@pytest.mark.parametrize("environment", [{}, {"PIKA_ADMIN_KEY": ""}])
def test_without_an_admin_key_it_says_how_to_make_one(profile: str, environment: dict[str, str]) -> None:
    with pytest.raises(ComposeError, match=r"PIKA_ADMIN_KEY.*openssl rand -hex 32"):
        composed(COMPOSE, profile, environment)


def test_the_ledger_is_kept_in_a_volume_that_can_be_written(profile: str, services: Services, pool: Settings) -> None:
    assert pool.ledger is not None
    assert pool.ledger.url is not None
    folder = str(Path(urlsplit(pool.ledger.url).path.removeprefix("/")).parent)
    [volume] = [one for one in services[f"gateway-{profile}"]["volumes"] if one["target"] == folder]
    assert volume["type"] == "volume"
    assert not volume.get("read_only")


def test_what_may_be_set_is_documented() -> None:
    used = set(re.findall(r"\$\{(\w+)", COMPOSE.read_text())) | {
        "HF_TOKEN",
        "PIKA_LEDGER_URL",
    }
    rows = [line for line in (DOCKER / "README.md").read_text().splitlines() if line.startswith("| `")]
    assert {name for row in rows for name in re.findall(r"`([A-Z_0-9]+)`", row.split("|")[1])} == used


def test_what_is_mounted_from_here_is_here(services: Services) -> None:
    sources = [one["source"] for service in services.values() for one in service["volumes"] if one["type"] == "bind"]
    assert all(Path(source).exists() for source in sources)
    assert all(one["read_only"] for service in services.values() for one in service["volumes"] if one["type"] == "bind")


def test_the_pool_is_what_the_servers_serve(services: Services, pool: Settings) -> None:
    servers = vllm_servers(services)
    served = {}
    for host, server in servers.items():
        options = dict(pairwise(server["command"]))
        served[options["--served-model-name"]] = (f"http://{host}:8000/v1", int(options["--max-model-len"]))
    configured = {
        name: (replica.url, model.max_context_tokens)
        for name, model in pool.models.items()
        for replica in model.replicas
    }
    assert configured == served


def test_the_gateway_waits_for_the_servers_and_is_where_prometheus_looks(profile: str, services: Services) -> None:
    gateway = services[f"gateway-{profile}"]
    assert gateway["depends_on"].keys() == vllm_servers(services).keys()
    assert {one["condition"] for one in gateway["depends_on"].values()} == {"service_healthy"}
    [scrape] = yaml.safe_load((DOCKER / "prometheus/prometheus.yml").read_text())["scrape_configs"]
    [target] = scrape["static_configs"][0]["targets"]
    assert target.split(":")[0] in gateway["networks"]["default"]["aliases"]
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())["datasources"][0]
    assert urlsplit(source["url"]).hostname in services


def test_it_may_drain_before_it_is_killed(profile: str, services: Services, pool: Settings) -> None:
    grace = services[f"gateway-{profile}"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) >= pool.server.drain_s + 10


def test_the_nano_pool_is_the_demos_but_for_where_it_is_served() -> None:
    ours, demos = load(DOCKER / "nano/pool.yaml"), load(NANO_POOL / "pool.yaml")
    no_replicas = {name: model.model_copy(update={"replicas": []}) for name, model in demos.models.items()}
    assert {name: model.model_copy(update={"replicas": []}) for name, model in ours.models.items()} == no_replicas
    assert (ours.arms, ours.engine, ours.policy, ours.limits) == (demos.arms, demos.engine, demos.policy, demos.limits)
    assert pool_sha256(ours, {}) == pool_sha256(demos, {})


def test_the_nano_servers_are_started_as_pika_up_starts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.launch.vllm_server.is_cpu_build", lambda: True)
    servers = vllm_servers(composed(COMPOSE, "nano", SECRETS)["services"])
    settings = load(NANO_POOL / "pool.yaml")
    launched = plan(settings, tmp_path)
    image = environment("vllm-cpu")
    for name, model in settings.models.items():
        [launch] = [replica.launch for replica in model.replicas]
        assert launch is not None
        assert set(launch.args) <= set(servers[name]["command"])
        set_by_us = launched[name, 0].env.items() - os.environ.items()
        assert set_by_us <= (image | servers[name]["environment"]).items()
        assert dict(pairwise(servers[name]["command"]))["--model"] == f"/models/{model.model}"
