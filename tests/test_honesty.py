"""What the nano pool's committed probes and policy promise, against what its arms did on problems that chose nothing.

The 1,500 test problems of `rollouts.parquet` with eight answers each stand for fresh ones: neither probes nor their
calibration nor the policy has seen them. `PIKA_FRESH_ROLLOUTS=fresh.parquet` names others to judge by instead:

    pika rollouts offline/nano_pool/pool.yaml --benchmark running_total --split test=1500 --seed 7 --out fresh.parquet
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from offline.evaluate import read_outcomes
from offline.evaluation.judge import Validation
from offline.evaluation.known import validation
from offline.evaluation.sweep import of_chosen
from offline.label import load_probes
from probes.measures import ece
from routing_policies.base import Policy
from routing_policies.min_success import MinSuccess
from server.app import create_app
from server.config import load
from server.routing.policies import Policies
from tests.support.gateway import nano_pool, serving
from tests.support.probes import NANO_POOL

ARMS = ("nano-small", "nano-medium", "nano-large")


@dataclass(frozen=True)
class Known:
    data: Validation
    policies: Policies

    def policy(self, name: str, **knobs: Any) -> Policy:
        return self.policies.get({"policy": name, **knobs}).policy


@pytest.fixture(scope="module")
def known() -> Known:
    settings = load(NANO_POOL / "pool.yaml")
    file = Path(os.environ.get("PIKA_FRESH_ROLLOUTS", NANO_POOL / "rollouts.parquet"))
    outcomes = read_outcomes(file, "test", list(settings.arms))
    assert len(outcomes.problems) >= 1500
    artifacts = load_probes(settings)
    data = validation(settings, artifacts, outcomes)
    hashes = {name: artifact.predictions_sha256 for name, artifact in artifacts.items()}
    return Known(data, Policies(settings, data.tier_cost, hashes))


@pytest.mark.parametrize("arm", ARMS)
def test_probabilities_are_frequencies(known: Known, arm: str) -> None:
    i = ARMS.index(arm)
    assert ece(known.data.success[:, i], known.data.success_rate[:, i]) <= 0.03


@pytest.mark.parametrize("target", [0.8, 0.9, 0.95])
def test_min_success_is_kept(known: Known, target: float) -> None:
    """By all chosen arms, and more so where the target is within reach, which flags tell."""
    data, policy = known.data, known.policy("min_success", min_success=target)
    assert isinstance(policy, MinSuccess)
    arms = policy.choose(data.success, data.cost)
    infeasible = policy.infeasible(data.success, arms)
    correct = of_chosen(data.success_rate, arms)
    assert correct.mean() >= target - 0.03
    assert correct[~infeasible].mean() >= target - 0.03
    assert 0 < infeasible.sum() < len(arms) / 2
    assert (infeasible == (data.success.max(axis=1) < policy.threshold)).all()
    # Where no arm is said to be up to the target, none was.
    assert correct[infeasible].mean() < target


@pytest.mark.parametrize("target", [0.85, 0.9])
def test_target_accuracy_is_met(known: Known, target: float) -> None:
    data, policy = known.data, known.policy("target_accuracy", accuracy=target)
    arms = policy.choose(data.success, data.cost)
    assert of_chosen(data.success_rate, arms).mean() == pytest.approx(target, abs=0.02)
    assert not policy.infeasible(data.success, arms).any()
    assert len(np.unique(arms)) > 1


def test_an_accuracy_out_of_reach_is_flagged(known: Known) -> None:
    data, policy = known.data, known.policy("target_accuracy", accuracy=0.99)
    arms = policy.choose(data.success, data.cost)
    assert policy.infeasible(data.success, arms).all()
    assert (arms == data.success.argmax(axis=1)).all()


def test_the_gateway_flags_what_is_out_of_reach() -> None:
    hard = "What is x at the end? x = 7; x += 4; x *= 2; x -= 3; x += 9; x -= 2; x *= 2; x -= 8; x += 5; x -= 6;"
    with serving(create_app(nano_pool("http://127.0.0.1:1/v1"))) as base:

        def flags(model: str) -> list[str]:
            body = {"model": model, "messages": [{"role": "user", "content": hard}]}
            found: list[str] = httpx.post(f"{base}/route", json=body, timeout=30).raise_for_status().json()["flags"]
            return found

        for reachable in ("auto-min_success-0.05", "auto-target_accuracy-0.85"):
            assert flags(reachable) == []
        for beyond in ("auto-min_success-0.999", "auto-target_accuracy-0.999"):
            assert flags(beyond) == ["infeasible"]
