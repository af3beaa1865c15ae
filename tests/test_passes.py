"""Arms whose probes read different probe models: one pass each, as in the paper."""

import json
from collections.abc import Iterator

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from offline.label import load_probes, predict
from offline.train import main as train
from server.app import create_app
from server.config import Settings, load
from tests.conftest import POOL
from tests.support import upstream as faults
from tests.support.gateway import serving

ARMS = ("nano-small", "nano-medium", "nano-large")
PROBLEMS = {"train": 240, "validation": 80, "test": 80}
QUESTIONS = [
    "What is x at the end? x = 12; x -= 9; x += 4; x *= 2; x -= 4; x = 11;",
    "What number do we end with? Begin with 12. Add 3. Double it. Subtract 5. Add 3. Add 6. Subtract 9.",
]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Each arm's probe reads that arm's own model; one upstream answers for all."""
    folder = tmp_path_factory.mktemp("passes")
    rollouts = pq.read_table(POOL.parent / "rollouts.parquet")
    parts = [
        rollouts.filter(pc.and_(pc.equal(rollouts["arm"], arm), pc.equal(rollouts["split"], split))).slice(0, n)
        for arm in ARMS
        for split, n in PROBLEMS.items()
    ]
    pq.write_table(pa.concat_tables(parts), folder / "rollouts.parquet")
    data = yaml.safe_load(POOL.read_text())
    for arm in ARMS:
        arguments = [str(POOL), "--data", str(folder / "rollouts.parquet"), "--arms", arm]
        layer = str(json.loads((POOL.parent / arm / "config.json").read_text())["num_hidden_layers"])
        arguments += ["--probe-model", str(POOL.parent / arm), "--layers", layer, "--positions", "-1"]
        assert train([*arguments, "--out", str(folder / "probes")]) == 0
        data["models"][arm]["model"] = str(POOL.parent / arm)
        data["arms"][arm]["probe"] = f"probes/{arm}"
    data["policy"] = {"name": "max_success"}
    with faults.running(faults.answers) as upstream:
        for model in data["models"].values():
            model["replicas"] = [{"url": upstream.url}]
        (folder / "pool.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
        yield load(folder / "pool.yaml")


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with serving(create_app(settings)) as url:
        yield url


def test_online_and_offline_agree(settings: Settings, url: str) -> None:
    data = httpx.post(f"{url}/score", json={"input": QUESTIONS}, timeout=60).json()["data"]
    online = np.array([[entry["arms"][arm]["success_probability"] for arm in ARMS] for entry in data])
    np.testing.assert_allclose(online, predict(settings, load_probes(settings), QUESTIONS).success, atol=1e-5)


def test_the_most_probable_arm_answers(url: str) -> None:
    body = {"model": "auto", "messages": [{"role": "user", "content": QUESTIONS[1]}]}
    route = httpx.post(f"{url}/route", json=body, timeout=60).json()
    probability = {arm: route["arms"][arm]["success_probability"] for arm in ARMS}
    assert len(set(probability.values())) == len(ARMS)
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, headers={"x-pika-debug": "1"})
    assert answer.status_code == 200
    assert answer.headers["x-pika-arm"] == max(ARMS, key=lambda arm: probability[arm])
    shown = dict(pair.split("=") for pair in answer.headers["x-pika-success-probabilities"].split(","))
    assert {arm: float(value) for arm, value in shown.items()} == pytest.approx(probability, abs=1e-3)


def test_each_pass_is_charged_at_its_models_price(url: str) -> None:
    def cost() -> float:
        lines = httpx.get(f"{url}/metrics", timeout=10).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("pika_probe_cost_usd_total"))

    before = cost()
    [entry] = httpx.post(f"{url}/score", json={"input": QUESTIONS[0]}, timeout=60).json()["data"]
    tokens = entry["arms"]["nano-small"]["prompt_tokens"]
    assert cost() - before == pytest.approx(tokens * (0.025 + 0.1 + 0.5) / 1e6)
