"""A ledger as a gateway with audits would have filled it: decisions of made-up requests, and outcomes of some."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import insert

from routing_policies.base import FloatArray, IndexArray, build
from routing_policies.costs import tier_cost
from server.ledger import rollups, tables
from server.ledger.database import Database
from server.ledger.insert import insert as insert_decisions
from server.ledger.insert import pool_id
from server.ledger.row import DecisionRow, PoolRow

POOL = PoolRow(
    arms=["small", "medium", "large", "reasoning"],
    prices=[(0.02, 0.06), (0.1, 0.3), (0.4, 1.2), (1.0, 4.0)],
    mean_tokens=[(200.0, 150.0), (200.0, 180.0), (200.0, 200.0), (200.0, 900.0)],
    probes=[None] * 4,
    policy={"name": "utility", "lambda": 0.4},
)
SKILL = np.array([0.0, 1.0, 2.0, 3.5])
AUDIT = 0.02
TOLD = 0.1
"""Share of the requests that have an outcome."""
PROBE_USD = 2e-7
CHUNK = 20_000
"""Decisions per transaction."""


@dataclass(frozen=True)
class Truth:
    """What the ledger does not tell."""

    success_rate: FloatArray
    """(n, k)"""
    arm: IndexArray
    """Where each request went, (n,)."""


def fill(
    database: Database,
    count: int,
    seed: int,
    first: float,
    last: float,
    audit: float = AUDIT,
    told: float = TOLD,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Truth:
    """Write decisions, their sums and outcomes.

    Args:
        first: Unix seconds of the first request, as `last` of the last; evenly spread between.
        audit: share of the requests that go to a random arm.
        told: share of the requests that have an outcome.
        on_progress: told how many decisions are written.
    """
    rng, k = np.random.default_rng(seed), len(POOL.arms)
    skill = SKILL - rng.normal(0, 2, (count, 1)) + rng.normal(0, 1, (count, k))
    true = 1 / (1 + np.exp(-skill))
    inputs = rng.integers(20, 400, count)
    means, prices = np.array(POOL.mean_tokens), np.array(POOL.prices)
    cost = (inputs[:, None] * prices[:, 0] + means[:, 1] * prices[:, 1]) / 1e6
    tier = tuple(tier_cost(means[:, 0], means[:, 1], prices[:, 0], prices[:, 1]).tolist())
    chosen = build("utility", {"lambda": 0.4}, tier).choose(true, cost)
    audited = rng.random(count) < audit
    arm = np.where(audited, rng.integers(k, size=count), chosen)
    propensity = np.where(arm == chosen, 1 - audit + audit / k, audit / k) if audit else np.ones(count)
    outputs = np.maximum(rng.exponential(means[arm, 1]), 1).astype(np.int64)
    right = rng.random(count) < true[np.arange(count), arm]
    spoken = rng.random(count) < told
    at = np.linspace(first, last, count)
    everyone = np.ones(k, dtype=np.bool_)
    for start in range(0, count, CHUNK):
        numbers = range(start, min(start + CHUNK, count))
        rows = [
            DecisionRow(
                request_id=f"{seed:08x}{i:024x}",
                at=float(at[i]),
                arm=int(arm[i]),
                policy_arm=int(chosen[i]),
                policy="utility",
                path="audit" if audited[i] else "routed",
                flags=(),
                propensity=float(propensity[i]),
                allowed=everyone,
                success=true[i],
                cost=cost[i],
                percentile=50.0,
                probe_usd=PROBE_USD,
                code=200,
                attempts=1,
                input_tokens=int(inputs[i]),
                output_tokens=int(outputs[i]),
                routing_s=0.003,
                total_s=0.8,
                stream=False,
            )
            for i in numbers
        ]
        outcomes: dict[str, dict[str, Any]] = {
            rows[i - start].request_id: {
                "request_id": rows[i - start].request_id,
                "source": "client",
                "correct": float(right[i]),
                "at": float(at[i]) + 1,
                "arm": POOL.arms[arm[i]],
                "success_probability": float(true[i, arm[i]]),
                "path": rows[i - start].path,
                "propensity": float(propensity[i]),
            }
            for i in numbers
            if spoken[i]
        }
        with database.write() as connection:
            pool = pool_id(connection, POOL, float(at[start]))
            insert_decisions(connection, rows, pool, POOL)
            sums = rollups.sums_of(rows, pool, POOL)
            for row in rows:
                outcome = outcomes.get(row.request_id)
                if outcome is not None:
                    outcome["pool"] = pool
                    for key in rollups.outcome_keys(row.at, pool, row.arm, row.policy, row.path):
                        sums[key].outcomes += 1
                        sums[key].correct += outcome["correct"]
            rollups.add(connection, sums)
            if outcomes:
                connection.execute(insert(tables.outcomes), list(outcomes.values()))
        on_progress(numbers[-1] + 1)
    return Truth(true, arm)
