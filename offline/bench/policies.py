"""`pika bench policies`: a policy's whole frontier with intervals, ours against a loop over problems with pandas.

Both sides choose by `utility` (lambda) among the same arms on the same problems. The loop is what research notebooks
do: for each lambda, one row of a data frame at a time, its outcome looked up; on a slice of problems and lambdas, its
time scaled. `ratio` compares the sweep alone, without bootstrap on both sides.
"""

import json
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from offline.evaluation.bootstrap import interval, weights
from offline.evaluation.frontier import frontier
from offline.evaluation.sweep import choices, of_chosen
from routing_policies.base import FloatArray, IndexArray
from routing_policies.costs import normalise

EXAMPLES = """examples:
  pika bench policies                    5,000 problems x 6 arms x 1,000 lambdas, 1,000 bootstrap draws
  pika bench policies --problems 20000

The last line is JSON: seconds (sweep, bootstrap and figures), ratio (how many times faster the sweep is than the loop),
same (whether both came to the same accuracies and costs).
"""
SLICE = (250, 8)
"""Problems and lambdas of the loop."""
REPETITIONS = 3
"""The quickest counts."""


@dataclass(frozen=True)
class Pool:
    """n problems and k arms, as an evaluation knows them."""

    success: FloatArray
    """Predicted, (n, k)."""
    expected: FloatArray
    """USD, (n, k)."""
    correct: FloatArray
    """Measured success rates, (n, k)."""
    usd: FloatArray
    """Measured, (n, k)."""
    tier_cost: tuple[float, ...]


def main(argv: list[str]) -> int:
    parser = ArgumentParser(
        prog="pika bench policies",
        description="A policy's whole frontier with intervals, ours against a loop over problems with pandas.",
        epilog=EXAMPLES,
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--problems", type=int, default=5000)
    parser.add_argument("--arms", type=int, default=6)
    parser.add_argument("--knobs", type=int, default=1000, help="values of lambda")
    parser.add_argument("--draws", type=int, default=1000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of problems and bootstrap")
    args = parser.parse_args(argv)
    if min(args.problems, args.arms, args.knobs, args.draws) < 2:
        parser.error("problems, arms, knobs and draws are whole numbers of at least 2")
    lambdas = np.geomspace(1e-3, 3, args.knobs)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("drawing problems")
        pool = synthetic(args.problems, args.arms, args.seed)
        progress.update(task, description="sweep, then bootstrap")
        ours, arms = _quickest(lambda: measured(pool, lambdas)[0])
        with_draws, figures = _timed(lambda: evaluated(pool, arms, args.draws, args.seed))
        progress.update(task, description="pandas, a row at a time")
        some = lambdas[:: max(1, len(lambdas) // SLICE[1])][: SLICE[1]]
        part = first(pool, SLICE[0])
        loop, looped = _quickest(lambda: pandas_loop(part, some))
    scaled = loop * pool.success.shape[0] / len(part.success) * len(lambdas) / len(some)
    result = {
        "ratio": round(scaled / ours, 1),
        "seconds": round(ours + with_draws, 3),
        "seconds_sweep": round(ours, 3),
        "seconds_bootstrap": round(with_draws, 3),
        "seconds_loop_scaled": round(scaled, 1),
        "same": bool(np.allclose(looped, measured(part, some)[1], rtol=1e-12, atol=0)),
        "problems": args.problems,
        "arms": args.arms,
        "knobs": args.knobs,
        "draws": args.draws,
        **figures,
    }
    Console().print(_table(result))
    print(json.dumps(result))
    return 0


def synthetic(n: int, k: int, seed: int) -> Pool:
    """Problems of one latent difficulty; arms of rising skill and cost, eight answers each."""
    rng = np.random.default_rng(seed)
    tier = np.geomspace(1e-6, 1e-4, k)
    skill = np.linspace(0, 3, k) - rng.normal(0, 2, (n, 1)) + rng.normal(0, 1, (n, k))
    success = 1 / (1 + np.exp(-skill))
    expected = tier * rng.uniform(0.7, 1.3, (n, 1))
    usd = expected * rng.uniform(0.8, 1.2, (n, k))
    return Pool(success, expected, rng.binomial(8, success) / 8, usd, tuple(tier.tolist()))


def first(pool: Pool, n: int) -> Pool:
    return Pool(pool.success[:n], pool.expected[:n], pool.correct[:n], pool.usd[:n], pool.tier_cost)


def measured(pool: Pool, lambdas: FloatArray) -> tuple[IndexArray, FloatArray]:
    """The arms chosen, (lambdas, n), and accuracy and mean USD at each lambda, (2, lambdas)."""
    knobs = [{"lambda": lam} for lam in lambdas.tolist()]
    arms = choices("utility", knobs, pool.success, pool.expected, pool.tier_cost)
    return arms, np.stack([of_chosen(pool.correct, arms).mean(axis=1), of_chosen(pool.usd, arms).mean(axis=1)])


def evaluated(pool: Pool, arms: IndexArray, draws: int, seed: int) -> dict[str, Any]:
    """Figures of the frontier with paired intervals, from every lambda in every draw."""
    drawn = weights(len(pool.success), draws, seed)  # (1 + draws, n)
    accuracy, usd = drawn @ of_chosen(pool.correct, arms).T, drawn @ of_chosen(pool.usd, arms).T
    best = int(pool.correct.mean(axis=0).argmax())
    goal, price = drawn @ pool.correct[:, best], drawn @ pool.usd[:, best]
    saving = interval(1 - frontier(usd, accuracy).cost_at(goal) / price)
    bands = np.quantile(accuracy[1:], [0.025, 0.975], axis=0)  # (2, lambdas)
    return {
        "parity_saving": None if saving is None else saving.to_json(),
        "widest_band": float((bands[1] - bands[0]).max()),
    }


def pandas_loop(pool: Pool, lambdas: FloatArray) -> FloatArray:
    """The same accuracies and costs, (2, lambdas), a row at a time."""
    import pandas as pd

    arms = range(pool.success.shape[1])
    cost = dict(zip(arms, normalise(pool.tier_cost).tolist(), strict=True))
    names = {"p": pool.success, "correct": pool.correct, "usd": pool.usd}
    frame = pd.DataFrame({f"{name}_{arm}": values[:, arm] for name, values in names.items() for arm in arms})
    found = []
    for lam in lambdas.tolist():
        correct, usd = [], []
        for _, row in frame.iterrows():
            utilities = {arm: row[f"p_{arm}"] - lam * cost[arm] for arm in arms}
            chosen = max(utilities, key=lambda arm: utilities[arm])
            correct.append(row[f"correct_{chosen}"])
            usd.append(row[f"usd_{chosen}"])
        found.append((np.mean(correct), np.mean(usd)))
    return np.array(found).T


def _quickest(work: Callable[[], Any]) -> tuple[float, Any]:
    return min((_timed(work) for _ in range(REPETITIONS)), key=lambda one: one[0])


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = perf_counter()
    result = work()
    return perf_counter() - start, result


def _table(result: dict[str, Any]) -> Table:
    shape = f"{result['problems']:,} problems x {result['arms']} arms x {result['knobs']:,} lambdas"
    table = Table(title=shape)
    for column in ("", "seconds", "times faster", "same"):
        table.add_column(column, justify="left" if column == "" else "right")
    same = "yes" if result["same"] else "NO"
    table.add_row("pandas, a row at a time (scaled)", f"{result['seconds_loop_scaled']:.1f}", "", "")
    table.add_row("sweep", f"{result['seconds_sweep']:.3f}", f"{result['ratio']:.0f}", same)
    table.add_row(f"sweep, {result['draws']:,} bootstrap draws, frontier", f"{result['seconds']:.3f}", "", "")
    return table
