"""A ledger full of decisions whose success probabilities are true, and what is true of them."""

from collections.abc import Iterator, Sequence

import numpy as np

from server.ledger import rollups
from server.ledger.database import Database, open_database
from server.ledger.insert import insert, pool_id
from server.ledger.row import DecisionRow, PoolRow
from server.ledger.tables import outcomes

POOL = PoolRow(
    arms=["nano-small", "nano-medium", "nano-large"],
    prices=[(0.025, 0.1), (0.1, 0.4), (0.5, 2.0)],
    mean_tokens=[(40.0, 6.0), (40.0, 6.0), (40.0, 35.0)],
    probes=[None, None, None],
    policy={"name": "utility", "lambda": 0.4},
)
COST = np.array([1.6e-6, 6.4e-6, 9e-5])
LAMBDA = 0.4
BATCH = 20_000


def decided(n: int, since: float, until: float, seed: int = 0, flags: Sequence[str] = ()) -> Iterator[DecisionRow]:
    """n decisions of the policy utility, evenly spread over a time; every tenth is an audit's."""
    rng = np.random.default_rng(seed)
    ease = rng.uniform(-1.5, 3.5, n)
    success = 1 / (1 + np.exp(-(ease[:, None] + np.array([-1.0, 0.6, 2.2]))))  # (n, k)
    chosen = (success - LAMBDA * (COST - COST.min()) / np.ptp(COST)).argmax(axis=1)
    drawn = rng.integers(0, 3, n)
    percentiles = rng.uniform(0, 100, n)
    for i, at in enumerate(np.linspace(since, until, n, endpoint=False).tolist()):
        audit = i % 10 == 9
        arm = int(drawn[i] if audit else chosen[i])
        odd = percentiles[i] > 98
        yield DecisionRow(
            request_id=f"request-{seed}-{i}",
            at=at,
            arm=arm,
            policy_arm=int(chosen[i]),
            policy="utility",
            path="audit" if audit else "routed",
            flags=[*flags, *(["out-of-distribution"] if odd else [])],
            propensity=0.1 / 3 + (0.9 if arm == chosen[i] else 0.0),
            allowed=np.ones(3, dtype=np.bool_),
            success=success[i],
            cost=COST,
            percentile=float(percentiles[i]),
            probe_usd=4e-7,
            code=200,
            attempts=1,
            input_tokens=40,
            output_tokens=[6, 6, 35][arm],
            routing_s=0.003,
            total_s=0.02 + 0.05 * arm,
            stream=False,
        )


def write(
    database: Database, rows: Sequence[DecisionRow], answered: float = 0.0, seed: int = 0, pool: PoolRow = POOL
) -> None:
    """Decisions, and outcomes of a share of them, right with their success probability."""
    rng = np.random.default_rng(seed + 1)
    for begin in range(0, len(rows), BATCH):
        part = rows[begin : begin + BATCH]
        with database.write() as connection:
            id_ = pool_id(connection, pool, part[0].at)
            insert(connection, part, id_, pool)
            rollups.add(connection, rollups.sums_of(part, id_, pool))
            said = [row for row in part if rng.random() < answered]
            sums: dict[rollups.Key, rollups.Sums] = {}
            told = []
            for row in said:
                correct = float(rng.random() < row.success[row.arm])
                told.append(
                    {
                        "request_id": row.request_id, "source": "client", "correct": correct, "at": row.at + 1,
                        "pool": id_, "arm": pool.arms[row.arm], "success_probability": float(row.success[row.arm]),
                        "path": row.path, "propensity": row.propensity,
                    }
                )  # fmt: skip
                for key in rollups.outcome_keys(row.at, id_, row.arm, row.policy, row.path):
                    sums.setdefault(key, rollups.Sums()).add(rollups.Sums(outcomes=1, correct=correct))
            if told:
                connection.execute(outcomes.insert(), told)
                rollups.add(connection, sums)


def filled(url: str, n: int, since: float, until: float, answered: float = 0.5) -> Database:
    """A new ledger."""
    database = open_database(url)
    write(database, list(decided(n, since, until)), answered)
    return database
