"""`pika replay` on what a real gateway recorded: audits, outcomes, pins and failures included."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from server.__main__ import main
from server.app import create_app
from server.config import load
from tests.support.gateway import serving, write_pool
from tests.support.gateway_client import FOR_THREADS
from tests.support.upstream import answers, fails_with, running

REQUESTS = 400
RIGHT = {"small": 0.3, "medium": 0.9}
"""How often each arm is right; the configuration thinks .5 and .7."""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A pool's file whose gateway has answered, and what its client knows of each request."""
    folder, rng = tmp_path_factory.mktemp("gateway"), np.random.default_rng(0)
    known: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    with running(answers) as upstream, running(fails_with(500)) as broken:
        file = write_pool(
            folder,
            {"small": [upstream.url], "medium": [upstream.url], "large": [broken.url]},
            ledger={},
            audit={"share": 0.5},
            policy={"name": "utility", "lambda": 0},
        )
        with (
            serving(create_app(load(file))) as url,
            httpx.Client(base_url=url, timeout=30, limits=FOR_THREADS) as client,
        ):
            for number in range(REQUESTS):
                body: dict[str, Any] = {"model": "auto", "messages": [{"role": "user", "content": f"hi {number}"}]}
                if number % 10 == 0:
                    body["model"] = "small"
                else:
                    body["routing"] = {"arms": ["small", "medium"]}
                answer = client.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200
                arm, id_ = answer.headers["x-pika-arm"], answer.headers["x-request-id"]
                correct = bool(rng.random() < RIGHT[arm])
                known.append({"arm": arm, "path": answer.headers["x-pika-path"], "correct": correct})
                told.append({"id": id_, "correct": correct})
            with ThreadPoolExecutor(20) as threads:
                for answer in threads.map(lambda outcome: client.post("/v1/outcomes", json=outcome), told):
                    assert answer.status_code == 200
            failed = client.post(
                "/v1/chat/completions", json={"model": "large", "messages": [{"role": "user", "content": "hi"}]}
            )
            assert failed.status_code == 500
    return file, known


def test_replay_agrees_with_the_client_s_own_records(
    pool: tuple[Path, list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    file, known = pool
    words = ("--ledger", str(file), "--policy", "max_success", "--policy", "min_cost", "--json")
    assert main(["replay", *words]) == 0
    result = json.loads(capsys.readouterr().out)
    routed = [one for one in known if one["path"] in ("routed", "audit")]
    assert len(routed) == REQUESTS * 9 // 10
    assert result["requests"] == len(routed)
    assert result["left_out"] == {"failed": 1, "pinned by the client": REQUESTS // 10}
    was = result["as_it_was"]
    assert was["mix"]["small"] == pytest.approx(np.mean([one["arm"] == "small" for one in routed]))
    right = np.mean([one["correct"] for one in routed])
    assert was["from_outcomes"]["inverse_propensity"]["value"] == pytest.approx(right)
    # A quarter of the requests went to small by chance, and speak for all that would go there.
    best, cheapest = result["what_if"]
    for found, arm in ((best, "medium"), (cheapest, "small")):
        assert found["mix"][arm] == 1
        told = [one["correct"] for one in routed if one["arm"] == arm]
        estimate = found["from_outcomes"]["inverse_propensity"]
        assert estimate["value"] == pytest.approx(np.mean(told))
        # A 95% interval misses one time in twenty: the truth is within five standard errors of the estimate.
        error = (estimate["high"] - estimate["low"]) / (2 * 1.96)
        assert error == pytest.approx(np.std(told) / np.sqrt(len(told)), rel=0.2)
        assert abs(estimate["value"] - RIGHT[arm]) < 5 * error
        assert found["from_outcomes"]["matched"] == len(told)
    assert cheapest["expected_accuracy"]["value"] == pytest.approx(0.5)
    assert cheapest["from_outcomes"]["doubly_robust"]["value"] < 0.5
