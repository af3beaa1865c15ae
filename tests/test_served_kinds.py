"""Every kind of probe: trained by `pika train` on the nano pool, put into a configuration, scoring in the gateway."""

from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest
import yaml

from offline.label import load_probes, predict
from offline.train import main as train
from probes.base import KINDS
from probes.measures import auroc
from server.app import create_app
from server.config import load
from tests.support.gateway import serving
from tests.support.probes import NANO_POOL

pytestmark = pytest.mark.slow

PROBLEMS = {"train": 300, "validation": 100, "test": 100}
ARMS = ("nano-small", "nano-large")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pool of two arms and some rollouts of theirs."""
    folder = tmp_path_factory.mktemp("kinds")
    whole = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    parts = [
        whole[(whole["arm"] == arm) & (whole["split"] == split)].head(n)
        for arm in ARMS
        for split, n in PROBLEMS.items()
    ]
    pd.concat(parts).to_parquet(folder / "rollouts.parquet")
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_is_trained_and_served(kind: str, folder: Path) -> None:
    pool = yaml.safe_load((NANO_POOL / "pool.yaml").read_text())
    pool["arms"] = {arm: {**pool["arms"][arm], "probe": f"{kind}/{arm}"} for arm in ARMS}
    pool["engine"]["when_unavailable"] = 503
    pool["policy"] = {"name": "max_success"}
    for model in pool["models"].values():
        model["model"] = str(NANO_POOL / model["model"])
        model["replicas"] = [{"url": "http://127.0.0.1:1/v1"}]
    file = folder / f"{kind}.yaml"
    file.write_text(yaml.safe_dump(pool, sort_keys=False))
    options = [str(file), "--data", str(folder / "rollouts.parquet"), "--out", str(folder / kind), "--kind", kind]
    options += ["--cache", str(folder / "cache"), "--label", "sample_is_correct"]
    if kind != "tfidf":
        options += ["--probe-model", str(NANO_POOL / "nano-small")]
    if kind not in ("tfidf", "length"):
        options += ["--layers", "1..2"]
    if kind == "mlp":
        options += ["--next-token"]
    assert train(options) == 0

    settings = load(file)
    rows = pd.read_parquet(folder / "rollouts.parquet").query("split == 'test' and arm == 'nano-small'")
    texts = rows["problem"].to_list()
    artifacts = load_probes(settings)
    expected = predict(settings, artifacts, texts).success
    with serving(create_app(settings)) as url:
        data = httpx.post(f"{url}/score", json={"input": texts}, timeout=60).raise_for_status().json()["data"]
    served = np.array([[entry["arms"][arm]["success_probability"] for arm in ARMS] for entry in data])
    np.testing.assert_allclose(served, expected, atol=1e-5)
    if kind not in ("tfidf", "length"):  # which know next to nothing here
        assert auroc(served[:, 0], rows["success_rate"].to_numpy()) > 0.6
    for artifact in artifacts.values():
        assert artifact.card.probe_type == f"{kind}_probe"
        assert (artifact.card.statistics is None) == (kind in ("tfidf", "length"))
        assert (data[0]["arms"]["nano-small"]["activation_percentile"] is None) == (kind in ("tfidf", "length"))
