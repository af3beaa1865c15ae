"""A gateway whose probes come from the Hub: the commit it serves, the branch it follows, the Hub's being away."""

import json
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.__main__ import main
from tests.support import upstream as faults
from tests.support.hub import TOKEN, Hub, Repository, running
from tests.support.legacy import legacy_folder
from tests.support.probes import NANO_POOL
from tests.support.processes import until
from tests.support.serve import BODY, ROOT, Served, served

# What the client does when it uploads.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

REPO = "ann/probes"
ARMS = ("nano-small", "nano-medium", "nano-large")
DEAD = "http://127.0.0.1:1"


@dataclass
class World:
    hub: Hub
    repository: Repository
    pinned: str
    """The commit that the configuration pins nano-large to."""
    file: Path
    environment: dict[str, str]
    gateway: Served

    @property
    def head(self) -> str:
        return self.repository.refs["main"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The nano pool's probes on a Hub, and a gateway that has fetched them."""
    folder = tmp_path_factory.mktemp("gateway")
    with running() as hub, faults.running(faults.answers) as upstream:
        with pytest.MonkeyPatch.context() as patch:
            hub.use(patch, folder / "publisher")
            for arm in ARMS:
                assert main(["probes", "push", str(NANO_POOL / "probes" / arm), REPO]) == 0
        repository = hub.repositories["model", REPO]
        pinned = repository.refs["main"]
        file = configuration(folder, upstream.url, pinned)
        environment = hub.environment(folder / "home")
        with served(file, environment, "--log-level", "debug") as gateway:
            yield World(hub, repository, pinned, file, environment, gateway)
            log = "".join(gateway.log)
    assert f"/api/models/{REPO}" in log  # it does tell what it asks the Hub
    assert TOKEN not in log


def configuration(folder: Path, url: str, pinned: str) -> Path:
    """Of the three arms one follows a branch that is named, one a branch that is not, and one stays at a commit."""
    data = yaml.safe_load((NANO_POOL / "pool.yaml").read_text())
    for model in data["models"].values():
        model["replicas"] = [{"url": url}]
        model["model"] = str(NANO_POOL / model["model"])
    for arm, revision in zip(ARMS, ("@main", "", f"@{pinned}"), strict=True):
        data["arms"][arm]["probe"] = f"hf://{REPO}/{arm}{revision}"
    # The cards name it ../../nano-medium, which leads nowhere from the Hub's cache.
    data["engine"]["probe_models"] = {"nano-medium": str(NANO_POOL / "nano-medium")}
    data["policy"] = {"name": "max_success"}
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def sources(gateway: Served) -> dict[str, str]:
    return {arm: entry["pika"]["probe_source"] for arm, entry in gateway.models().items() if arm in ARMS}


def card(repository: Repository, arm: str) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(repository.files[f"{arm}/config.json"])
    return config


def test_names_the_commits_that_it_serves(world: World) -> None:
    found = sources(world.gateway)
    assert found["nano-large"] == f"hf://{REPO}/nano-large@{world.pinned}"
    commits = {arm: source.rpartition("@")[2] for arm, source in found.items()}
    assert all(world.repository.at(commit) for commit in commits.values())
    assert not any(entry["pika"]["probe_from_cache"] for entry in world.gateway.models().values() if "probe" in entry)
    metrics = world.gateway.client.get("/metrics").text
    for arm in ARMS:
        answer = world.gateway.client.post("/v1/chat/completions", json={**BODY, "routing": {"arms": [arm]}})
        assert (answer.status_code, answer.headers["x-pika-arm"]) == (200, arm)
        probe, _, revision = answer.headers["x-pika-probe"].rpartition("@")
        assert revision == commits[arm]
        assert f'pika_probe_info{{probe="{probe}",revision="{revision}"}} 1.0' in metrics
        assert f"{arm} by {probe}@{revision}" in "".join(world.gateway.log)


def test_follows_a_branch_when_told_and_drops_nothing(world: World) -> None:
    gateway, stop = world.gateway, threading.Event()
    before = sources(gateway)
    answers: list[tuple[int, str]] = []

    def ask() -> None:
        while not stop.is_set():
            answer = gateway.client.post("/v1/chat/completions", json={**BODY, "routing": {"arms": ["nano-small"]}})
            answers.append((answer.status_code, answer.headers["x-pika-success-probability"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 20, 30, "requests are answered")
    new = card(world.repository, "nano-small")
    new["calibration"] |= {"method": "platt", "bias": new["calibration"]["bias"] - 2}
    new_head = world.repository.commit({"nano-small/config.json": json.dumps(new).encode()})
    assert sources(gateway) == before
    gateway.hang_up("reloaded: nano-small by")
    asked = len(answers)
    until(lambda: len(answers) > asked + 20, 30, "requests go on")
    stop.set()
    for thread in threads:
        thread.join(timeout=30)
    assert {code for code, _ in answers} == {200}
    (first, last) = dict.fromkeys(success for _, success in answers)
    assert float(last) < float(first)
    assert sources(gateway) == {
        "nano-small": f"hf://{REPO}/nano-small@{new_head}",
        "nano-medium": f"hf://{REPO}/nano-medium@{new_head}",
        "nano-large": f"hf://{REPO}/nano-large@{world.pinned}",
    }
    revisions = re.findall(r'pika_probe_info\{.*revision="(\w+)"\}', gateway.client.get("/metrics").text)
    assert sorted(revisions) == sorted([new_head, new_head, world.pinned])


class Hostile:
    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def spoilt(world: World, how: str, folder: Path) -> dict[str, bytes | None]:
    """A commit with which nano-small is no probe that may be served."""
    if how == "weights":
        return {"nano-small/probe.safetensors": b"?"}
    if how == "tokenizer":
        config = {**card(world.repository, "nano-small"), "canary_token_ids": [1, 2, 3]}
        return {"nano-small/config.json": json.dumps(config).encode()}
    files = {file.name: file.read_bytes() for file in legacy_folder(folder / "legacy", task="regression").iterdir()}
    files["best_probe.joblib"] = pickle.dumps(Hostile(folder / "it-ran"))
    return {"nano-small/probe.safetensors": None, **{f"nano-small/{name}": bytes_ for name, bytes_ in files.items()}}


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("weights", "probe.safetensors is not a safetensors file"),
        ("tokenizer", "splits the canary prompt otherwise"),
        ("pickles", "best_probe.joblib"),
    ],
)
def test_refuses_a_commit_that_fails_a_check(world: World, how: str, said: str, tmp_path: Path) -> None:
    gateway, good = world.gateway, dict(world.repository.files)
    before, logged = gateway.models(), len(gateway.log)
    world.repository.commit(spoilt(world, how, tmp_path))
    try:
        gateway.hang_up("reload refused, configuration and probes stay as they were: arms.nano-small.probe: ")
        assert said in "".join(gateway.log[logged:])
        assert "Traceback" not in "".join(gateway.log[logged:])
        assert gateway.models() == before
        answer = gateway.client.post("/v1/chat/completions", json={**BODY, "routing": {"arms": ["nano-small"]}})
        assert answer.status_code == 200
        assert before["nano-small"]["pika"]["probe"] == answer.headers["x-pika-probe"]
        assert not (tmp_path / "it-ran").exists()
    finally:
        surplus = dict.fromkeys(name for name in world.repository.files if name not in good)
        world.repository.commit({**good, **surplus})


def test_starts_from_its_cache_where_the_hub_is_away(world: World, tmp_path: Path) -> None:
    """Even where the last that it fetched was refused: with what passed its checks before."""
    before, good = sources(world.gateway), world.repository.files["nano-small/probe.safetensors"]
    world.repository.commit({"nano-small/probe.safetensors": b"?"})
    world.gateway.hang_up("reload refused")
    world.repository.commit({"nano-small/probe.safetensors": good})
    with served(world.file, {**world.environment, "HF_ENDPOINT": DEAD}) as gateway:
        assert sources(gateway) == before
        assert all(gateway.models()[arm]["pika"]["probe_from_cache"] for arm in ARMS)
        log = "".join(gateway.log)
        for arm, source in before.items():
            assert re.search(
                rf"the Hub is away .*/{arm}@.* taken from its cache, as it was at commit {source[-40:]}", log
            )
        assert gateway.client.post("/v1/chat/completions", json=BODY).status_code == 200
    assert TOKEN not in log


def test_ends_in_one_line_where_hub_and_cache_have_nothing(world: World, tmp_path: Path) -> None:
    environment = {**world.environment, "HF_ENDPOINT": DEAD, "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "server", "serve", str(world.file), "--port", "0", "--log-level", "warning"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, "not 2: nothing is wrong with the configuration"
    [line] = done.stderr.splitlines()
    assert line.startswith("pika: arms.nano-small.probe: cannot fetch hf://ann/probes/nano-small@main: the Hub is away")
    assert "its cache lacks the probe; try again later" in line
