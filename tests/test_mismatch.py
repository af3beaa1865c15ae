"""A probe served in another type than it was trained in: refused, or allowed by name and said with every answer."""

from pathlib import Path

import httpx
import pytest
import yaml

from probes.base import ProbeError
from server.app import create_app
from server.commands.serve import _parser, read
from server.config import load
from tests.support import upstream as faults
from tests.support.gateway import serving
from tests.support.probes import NANO_POOL
from tests.support.serve import BODY


def configuration(folder: Path, url: str) -> Path:
    data = yaml.safe_load((NANO_POOL / "pool.yaml").read_text())
    for model in data["models"].values():
        model |= {"model": str(NANO_POOL / model["model"]), "replicas": [{"url": url}]}
    for arm in data["arms"].values():
        arm["probe"] = str(NANO_POOL / arm["probe"])
    data["engine"]["dtype"] = "bfloat16"
    data["policy"] = {"name": "max_success"}
    file = folder / "pool.yaml"
    file.write_text(yaml.safe_dump(data, sort_keys=False))
    return file


def test_an_allowed_mismatch_is_said_with_every_answer(tmp_path: Path) -> None:
    with faults.running(faults.answers) as upstream:
        file = configuration(tmp_path, upstream.url)
        with pytest.raises(ProbeError, match=r"arms.nano-small.probe: .*float32, not bfloat16; --allow-mismatch dtype"):
            create_app(load(file))
        settings = read(_parser("serve", "", "").parse_args([str(file), "--allow-mismatch", "dtype"]))
        with serving(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
            [scored] = client.post("/score", json={"input": "Begin with 2. Add 1."}).json()["data"]
            assert "mismatch-dtype" in scored["flags"]
            assert all(0 <= arm["success_probability"] <= 1 for arm in scored["arms"].values())
            assert "mismatch-dtype" in client.post("/route", json=BODY).json()["flags"]
            answer = client.post("/v1/chat/completions", json=BODY)
            assert (answer.status_code, answer.headers["x-pika-path"]) == (200, "routed")
            assert "mismatch-dtype" in answer.headers["x-pika-flags"].split(",")
            metrics = client.get("/metrics").text
            assert 'pika_flags_total{flag="mismatch-dtype"} 1.0' in metrics
            assert 'pika_flags_total{flag="mismatch-tokenizer"} 0.0' in metrics
