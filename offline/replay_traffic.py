"""Decisions of a ledger as what replay works on: those that a policy made, or could have made otherwise."""

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from sqlalchemy import func, select

from offline.replay_plan import ReplayError
from routing_policies.base import FloatArray, PolicyError
from routing_policies.costs import tier_cost
from routing_policies.replay import Recorded, recorded
from server.ledger import tables
from server.ledger.database import Database
from server.ledger.reader import Decisions, read_decisions, read_pools, reading
from server.sections.pool import Prices

NO_POLICY = {
    "pinned": "pinned by the client",
    "fallback": "fell back from an arm that failed",
    "probe-unavailable": "came while the engine could not answer",
}
"""Paths on which no policy chose, and why such requests are left out."""
UNREAD = ("policy_arm", "policy", "percentile", "input_tokens", "output_tokens", "pool")
"""Columns that are needed for other prices, or not at all."""
FIXED = "safe-arm"
"""The path on which every policy chooses alike."""


@dataclass(frozen=True)
class Traffic:
    """Requests of one pool that can be replayed."""

    pool: int
    arms: tuple[str, ...]
    prices: tuple[tuple[float, float], ...]
    """USD per million tokens, (input, output) by arm."""
    tier_cost: tuple[float, ...]
    record: Recorded
    first: float
    """Unix seconds of the oldest request."""
    last: float
    left_out: Mapping[str, int]
    """Requests of this time that are not replayed, by why."""


def read_traffic(
    database: Database,
    pool: int | None,
    since: float | None,
    until: float | None,
    prices: Mapping[str, Prices] | None,
    on_progress: Callable[[int, int], None],
) -> Traffic:
    """
    Args:
        pool: id of one in the ledger; None: the newest.
        since: Unix seconds.
        prices: by arm, in place of those of the time; None: as recorded.

    Raises:
        LedgerError: the ledger cannot be read, or has no such pool.
        ReplayError: there is nothing to replay.
    """
    without = UNREAD if prices is None else ()
    with _no_collection():
        decisions = read_decisions(
            database, pool, since, until, without=without, second_process=True, on_progress=on_progress
        )
    others = _others(database, decisions, since, until)
    left_out = {"of pools of other arms (see --pool)": others}
    if not len(decisions):
        raise ReplayError(
            f"the ledger {database} has no decisions of this pool in this time"
            + (f", but {others:,} of pools of other arms: name one by --pool" if others else "")
            + ": give an earlier --since, or let the gateway answer requests first"
        )
    failed = decisions.code != 200
    left_out["failed"] = int(failed.sum())
    kept = ~failed
    for path, why in NO_POLICY.items():
        here = kept & (decisions.path == path)
        left_out[why] = int(here.sum())
        kept &= ~here
    if not kept.any():
        told = ", ".join(f"{count:,} {why}" for why, count in left_out.items() if count)
        raise ReplayError(f"no policy chose in any of the {len(decisions):,} decisions in this time ({told})")
    stored = decisions.pool
    cost, paid, priced = decisions.cost, decisions.cost_usd, tuple((float(a), float(b)) for a, b in stored.prices)
    if prices is not None:
        lacking = [arm for arm in stored.arms if arm not in prices]
        if lacking:
            raise ReplayError(
                f"--prices has none of {', '.join(lacking)}: it needs {{input: ..., output: ...}} of each"
            )
        new = tuple((prices[arm].input, prices[arm].output) for arm in stored.arms)
        cost, paid = repriced(decisions, {one.id: one.prices for one in read_pools(database)}, new)
        priced = new
    tokens_in, tokens_out = np.array(stored.mean_tokens, dtype=np.float64).T
    price_in, price_out = np.array(priced).T
    rows = np.flatnonzero(kept)
    try:
        record = recorded(
            success=decisions.success.take(rows, axis=0),
            cost=cost.take(rows, axis=0),
            allowed=decisions.allowed.take(rows, axis=0),
            arm=decisions.arm[rows].astype(np.intp),
            propensity=decisions.propensity[rows],
            outcome=decisions.outcome[rows],
            paid_usd=paid[rows],
            probe_usd=decisions.probe_usd[rows],
            fixed=(decisions.path[rows] == FIXED).astype(np.bool_),
        )
    except PolicyError as error:
        raise ReplayError(str(error)) from error
    left_out["lacking a success probability"] = record.left_out
    return Traffic(
        pool=stored.id,
        arms=tuple(stored.arms),
        prices=priced,
        tier_cost=tuple(tier_cost(tokens_in, tokens_out, price_in, price_out).tolist()),
        record=replace(record, left_out=0),
        first=float(decisions.at[rows].min()),
        last=float(decisions.at[rows].max()),
        left_out={why: count for why, count in left_out.items() if count},
    )


def repriced(
    decisions: Decisions, old: Mapping[int, Sequence[Sequence[float]]], new: Sequence[Sequence[float]]
) -> tuple[FloatArray, FloatArray]:
    """Expected costs, (n, k), and costs paid, (n,), at other prices.

    Expected output tokens follow from the expected cost; where an arm's output was free, its mean stands for them.

    Args:
        old: prices by pool, which decisions name: USD per million tokens, (input, output) by arm.
        new: the same of all.
    """
    means = np.array(decisions.pool.mean_tokens, dtype=np.float64)  # (k, 2)
    ids, which = np.unique(decisions.pool_id, return_inverse=True)
    was = np.array([old[pool] for pool in ids.tolist()], dtype=np.float64)[which] / 1e6  # (n, k, 2)
    now = np.array(new, dtype=np.float64) / 1e6  # (k, 2)
    told = decisions.input_tokens[:, None]
    tokens_in = np.where(np.isfinite(told), told, means[:, 0])  # (n, k)
    price_in, price_out = was[..., 0], was[..., 1]
    rest = (decisions.cost - tokens_in * price_in).clip(min=0)
    tokens_out = np.where(price_out > 0, rest / np.where(price_out > 0, price_out, 1.0), means[:, 1])
    cost = tokens_in * now[:, 0] + tokens_out * now[:, 1]
    arm = decisions.arm
    return cost, decisions.input_tokens * now[arm, 0] + decisions.output_tokens * now[arm, 1]


@contextmanager
def _no_collection() -> Iterator[None]:
    """Half the time would go into looking for cycles among a million rows, which have none."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _others(database: Database, decisions: Decisions, since: float | None, until: float | None) -> int:
    """Decisions of the same time among other arms."""
    same = list(decisions.pool.arms)
    ids = [pool.id for pool in read_pools(database) if list(pool.arms) != same]
    if not ids:
        return 0
    table = tables.decisions
    query = select(func.count()).select_from(table).where(table.c.pool.in_(ids))
    if since is not None:
        query = query.where(table.c.at >= since)
    if until is not None:
        query = query.where(table.c.at < until)
    with reading(database) as connection:
        return int(connection.execute(query).scalar_one())
