"""What the operator does over HTTP: reload, for all workers or none, and look at keys. No secret comes out anywhere."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from server.launch.vllm_server import free_port
from tests.support import upstream as faults
from tests.support.gateway import write_pool
from tests.support.gateway_client import MESSAGES, chat, gateway
from tests.support.keys import new_key
from tests.support.processes import until
from tests.support.serve import BODY, ROOT, Served, served
from tests.test_access import ADMIN, ADMIN_KEY
from tests.test_dashboard import DATA, OF_LEDGER

PATH = "/v1/chat/completions"
SHOWN = ("/dashboard", "/dashboard/static/app.js", *(f"{DATA}/{path}" for path in ("summary", "replicas", *OF_LEDGER)))
"""What the dashboard is made of."""


@contextmanager
def operated(folder: Path, *options: str, **sections: Any) -> Iterator[tuple[Served, Path]]:
    """A gateway process with an admin key, and its configuration."""
    with faults.running(faults.answers) as upstream:
        urls = {"small": [upstream.url], "large": [upstream.url]}
        config = write_pool(folder, urls, admin={"key_env": "PIKA_ADMIN_KEY"}, **sections)
        with served(config, {"PIKA_ADMIN_KEY": ADMIN_KEY}, *options) as running:
            yield running, config


def change(config: Path, **sections: Any) -> None:
    config.write_text(yaml.safe_dump({**yaml.safe_load(config.read_text()), **sections}, sort_keys=False))


@pytest.mark.parametrize("options", [(), ("--workers", "2")])
def test_a_reload_is_taken_by_all_or_refused_with_the_reason(tmp_path: Path, options: tuple[str, ...]) -> None:
    with operated(tmp_path, *options) as (running, config):
        base = running.client.base_url

        def ask() -> str:
            """On a connection of its own, which any worker may take."""
            return httpx.post(f"{base}{PATH}", json=BODY, timeout=30, verify=False).headers["x-pika-policy"]

        assert ask() == "utility"
        change(config, policy={"name": "min_cost"})
        for _ in range(2):
            answer = httpx.post(f"{base}/admin/reload", headers=ADMIN, timeout=60, verify=False)
            assert (answer.status_code, answer.json()) == (200, {"reloaded": True})
            assert {ask() for _ in range(8)} == {"min_cost"}
        change(config, policy={"name": "min_coast"})
        refused = httpx.post(f"{base}/admin/reload", headers=ADMIN, timeout=60, verify=False)
        assert refused.status_code == 422
        assert "all stays as it was" in refused.json()["error"]["message"]
        assert "min_coast" in refused.json()["error"]["message"]
        assert {ask() for _ in range(8)} == {"min_cost"}
        assert httpx.post(f"{base}/admin/reload", timeout=60, verify=False).status_code == 401
        change(config, policy={"name": "max_success"})
        running.hang_up("reloaded:")
        assert {ask() for _ in range(8)} == {"max_success"}


def test_a_broken_file_of_keys_refuses_the_reload(tmp_path: Path) -> None:
    new_key(tmp_path / "keys.yaml", "team")
    with operated(tmp_path, keys={"file": "keys.yaml"}) as (running, _):
        (tmp_path / "keys.yaml").write_text("team:\n  sha: 1\n")
        refused = running.client.post("/admin/reload", headers=ADMIN)
        assert refused.status_code == 422
        assert "keys.yaml:2: team: unknown key 'sha'" in refused.json()["error"]["message"]


def test_keys_are_listed_with_what_they_have_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIKA_ADMIN_KEY", ADMIN_KEY)
    file = tmp_path / "keys.yaml"
    team = new_key(file, "team", arms=["small"], usd_per_day=1, requests_per_minute=7, routing={"lambda": 0.5})
    new_key(file, "free")
    sections = {
        "keys": {"file": str(file)},
        "admin": {"key_env": "PIKA_ADMIN_KEY"},
        "ledger": {"url": f"sqlite:///{tmp_path}/ledger.sqlite"},
    }
    with gateway({"small": [faults.answers], "large": [faults.answers]}, **sections) as (client, _):
        assert client.get("/admin/keys", headers=team).status_code == 401
        assert chat(client, team).status_code == 200
        cost = (11 * 0.1 + 7 * 0.4) / 1e6
        until(lambda: spent(client)["day"] == pytest.approx(cost), 5, "it is settled")
        listed = client.get("/admin/keys", headers=ADMIN)
        keys = listed.json()["keys"]
        assert keys["team"] | {"spent_usd": None} == {
            "arms": ["small"],
            "policies": None,
            "routing": {"lambda": 0.5},
            "requests_per_minute": 7,
            "tokens_per_minute": None,
            "budgets_usd": {"day": 1},
            "spent_usd": None,
        }
        assert spent(client)["month"] == pytest.approx(cost)
        assert keys["free"]["spent_usd"] is None
        assert "sha256" not in listed.text
        assert yaml.safe_load(file.read_text())["team"]["sha256"][:16] not in listed.text


def spent(client: httpx.Client) -> dict[str, float]:
    found: dict[str, float] = client.get("/admin/keys", headers=ADMIN).json()["keys"]["team"]["spent_usd"]
    return found


MARKED = "marked-secret"


def test_no_secret_is_found_anywhere(tmp_path: Path) -> None:
    """Every secret is marked; then all is asked for, rightly and wrongly, and every byte that came of it searched."""
    added = subprocess.run(
        [sys.executable, "-m", "server", "keys", "add", "team", "--file", str(tmp_path / "keys.yaml"),
         "--requests-per-minute", "40", "--usd-per-day", "0.001"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = added.stdout.strip()
    environment = {
        "PIKA_ADMIN_KEY": f"{MARKED}-admin-key",
        "UPSTREAM_KEY": f"{MARKED}-upstream",
        "HF_TOKEN": f"{MARKED}-hub",
    }
    secrets = [key, key.removeprefix("pika-"), *environment.values()]
    right, admin = {"authorization": f"Bearer {key}"}, {"authorization": f"Bearer {environment['PIKA_ADMIN_KEY']}"}
    wrong = {"authorization": f"Bearer {MARKED}-wrong", "x-api-key": f"{MARKED}-other"}
    said: list[str] = []
    with faults.running(faults.answers) as upstream, faults.running(faults.drops_in_mid_stream) as broken:
        config = write_pool(
            tmp_path, {"small": [upstream.url], "large": [broken.url]}, admin={"key_env": "PIKA_ADMIN_KEY"},
            keys={"file": "keys.yaml"}, ledger={"prompts": True},
        )  # fmt: skip
        data = yaml.safe_load(config.read_text())
        for model in data["models"].values():
            model["replicas"][0]["api_key_env"] = "UPSTREAM_KEY"
        config.write_text(yaml.safe_dump(data, sort_keys=False))
        options = ("--workers", "2", "--log-level", "debug", "--log-format", "json")
        with served(config, environment, *options) as running:
            client = running.client

            def ask(method: str, path: str, headers: dict[str, str], **body: Any) -> None:
                answer = client.request(method, path, headers=headers, json=body or None)
                said.append(str(answer.headers) + answer.text)

            for headers in (right, wrong, admin, {}):
                for path in ("/health", "/ready", "/metrics", "/v1/models", "/nothing", "/openapi.json"):
                    ask("GET", path, headers)
                for path in ("/admin/config", "/admin/keys", "/admin/probes"):
                    ask("GET", path, headers)
                for model, fields in (("auto", {}), ("small", {"n": 2}), ("large", {"stream": True}), ("none", {})):
                    ask("POST", PATH, headers, model=model, messages=MESSAGES, max_tokens=50, **fields)
                for path in ("/score", "/route", f"{DATA}/route", "/v1/embeddings", "/v1/outcomes"):
                    ask("POST", path, headers, model="small", messages=MESSAGES, input="x", id="x", correct=1)
            ask("POST", "/admin/reload", admin)
            until(lambda: client.get(f"{DATA}/decisions/1", headers=admin).status_code == 200, 10, "one is recorded")
            for headers in (right, wrong, {}, admin):
                for path in SHOWN:
                    ask("GET", path, headers)
            for path in SHOWN:
                assert client.get(path, headers=admin).status_code == 200
            for one in client.get(f"{DATA}/decisions", headers=admin).json()["decisions"]:
                ask("GET", f"{DATA}/decisions/{one['id']}", admin)
            (tmp_path / "keys.yaml").write_text(f"team:\n  sha256: {key}\n")  # pasted in the wrong place
            until(lambda: "keys stay as they were" in "".join(running.log), 5, "the typo is noticed")
            ask("POST", "/admin/reload", admin)
            ask("GET", "/ready", {})
            (tmp_path / "keys.yaml").unlink()
            until(lambda: client.get("/metrics").text.count("pika_budget_spent_ratio{") == 1, 10, "it is scraped")
        said += running.log
        assert {one.headers["authorization"] for one in upstream.requests} == {f"Bearer {environment['UPSTREAM_KEY']}"}
        sent = "".join(str(one.headers | {"authorization": ""}) + str(one.raw) for one in upstream.requests)
    said.append(sent)
    ledger = list(tmp_path.glob("pika-ledger.sqlite*"))
    assert ledger
    found = "\n".join(said).encode() + b"".join(one.read_bytes() for one in ledger) + config.read_bytes()
    for secret in secrets:
        assert secret.encode() not in found
    assert f"{MARKED}-wrong".encode() not in found
    assert f"{MARKED}-other".encode() not in found


@pytest.mark.parametrize("url", ["postgresql://pika:{}@{}/pika", "postgresql://pika@{1}/pika?password={0}"])
def test_the_password_of_a_ledger_that_is_away_is_found_nowhere(tmp_path: Path, url: str) -> None:
    """It comes with the URL, from the environment; what is wrong with the database is told all the same."""
    environment = {
        "PIKA_ADMIN_KEY": ADMIN_KEY,
        "PIKA_LEDGER": url.format(f"{MARKED}-password", f"127.0.0.1:{free_port()}"),
    }
    team = new_key(tmp_path / "keys.yaml", "team")
    said: list[str] = []
    with faults.running(faults.answers) as upstream:
        config = write_pool(
            tmp_path, {"small": [upstream.url], "large": [upstream.url]}, admin={"key_env": "PIKA_ADMIN_KEY"},
            keys={"file": "keys.yaml"}, ledger={"url_env": "PIKA_LEDGER"},
        )  # fmt: skip
        with served(config, environment, "--log-level", "debug") as running:
            asked = [("GET", path) for path in (*SHOWN, "/ready", "/metrics", "/admin/config", "/admin/keys")]
            for method, path in (*asked, ("POST", f"{DATA}/route"), ("POST", PATH), ("POST", "/admin/reload")):
                headers, body = team if path == PATH else ADMIN, BODY if method == "POST" else None
                answer = running.client.request(method, path, headers=headers, json=body)
                said.append(str(answer.headers) + answer.text)
            assert running.client.post(PATH, headers=team, json=BODY).status_code == 200
            assert running.client.get(f"{DATA}/mix", headers=ADMIN).status_code == 503
            until(lambda: "is PostgreSQL up" in running.client.get("/ready").text, 20, "/ready says that it is away")
        said += running.log
    assert any("is PostgreSQL up" in line for line in running.log)
    assert MARKED not in "".join(said)
