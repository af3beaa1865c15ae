"""Thresholds for `min_success` with a finite-sample guarantee.

What is guaranteed, for any one target: with confidence `level` over the draw of the n problems, answers to further
requests like these that are not flagged `infeasible` are correct at least as often as the target says, on average. It
is of this pool, its costs and `min_success` itself, whichever arms the threshold makes it choose, and needs nothing of
the probabilities: where these promise too much, thresholds rise above the target until outcomes bear them out. They
never fall below it, for `min_success` promises every single answer that much. It does need problems that fitted and
chose nothing else, neither the probes nor their calibration.

Source: Angelopoulos, Bates, Candès, Jordan, Lei, "Learn then test: calibrating predictive algorithms to achieve risk
control", 2021: fixed-sequence testing from several starts, each at its share of the error. A problem's loss is its
chosen arm's share of wrong samples; given which problems are feasible, those are independent draws too.
"""

import math
from collections.abc import Sequence

import numpy as np

from offline.evaluate import FloatArray
from routing_policies.min_success import MinSuccess

Guarantee = list[tuple[float, float | None]]
"""(target, threshold), targets rising; None: the target is out of reach on these problems."""

TARGETS = tuple(round(step / 100, 2) for step in range(1, 100))
HALVING = 10
"""Steps in which a threshold comes half as near to 1; step 0 is the target itself."""
STARTS = (0, 10, 20, 30, 40)
"""Steps from which thresholds are tested downwards until one fails, each at an equal share of the error."""
MAX_STAKE = 0.75
"""Of the capital, so that no loss ruins."""

SAYS = (
    "for any one target, with confidence {level:g} over the draw of these problems: answers to requests like them that "
    "min_success does not flag infeasible are correct at least as often as the target says, on average; thresholds are "
    "never below the target; null: out of reach here, every request is flagged and goes to the most probable arm"
)


def guarantee(
    success: FloatArray,
    cost: FloatArray,
    success_rate: FloatArray,
    level: float,
    seed: int = 0,
    targets: Sequence[float] = TARGETS,
) -> Guarantee:
    """The least threshold for each target that holds it with confidence `level`.

    Args:
        success: predicted success probabilities, (n, k).
        cost: expected USD of one answer, (n, k).
        success_rate: measured, (n, k).
        level: confidence, between 0 and 1.
        seed: of the order in which problems are looked at, which must not depend on what came of them.
    """
    error = (1 - level) / len(STARTS)
    order = np.random.default_rng(seed).permutation(len(success))
    success, cost, success_rate = success[order], cost[order], success_rate[order]

    def threshold(target: float) -> float | None:
        def at(step: int) -> float:
            return round(1 - (1 - target) * math.exp2(-step / HALVING), 6)

        def holds(step: int) -> bool:
            policy = MinSuccess(at(step))
            arms = policy.choose(success, cost)
            feasible = ~policy.infeasible(success, arms)
            wrong = 1 - success_rate[np.arange(len(arms)), arms]
            return is_below(wrong[feasible], 1 - target, error)

        step = next((start for start in STARTS if holds(start)), None)
        while step is not None and step > 0 and holds(step - 1):
            step -= 1
        return None if step is None else at(step)

    return [(target, threshold(target)) for target in targets]


def is_below(losses: FloatArray, risk: float, error: float) -> bool:
    """Whether independent losses in [0, 1], (n,), have a mean below `risk`; wrong no more often than `error`.

    By betting: a gambler stakes on each loss being below the risk, how much by what was seen before. Were the mean not
    below it, his capital would be no more than he began with, on average, and would reach 1 / error with probability
    `error` at most (Ville). Unlike Hoeffding's or Bentkus' bound this one gains from losses that vary little, as shares
    of k samples do. Source: Waudby-Smith and Ramdas, "Estimating means of bounded random variables by betting", 2024.
    """
    n = len(losses)
    seen = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(losses)) / (seen + 1)
    variance = (0.25 + np.cumsum((losses - mean) ** 2)) / (seen + 1)
    variance_before = np.concatenate([[0.25], variance])[:n]
    stake = np.minimum(np.sqrt(2 * math.log(1 / error) / (n * variance_before)), MAX_STAKE / (1 - risk))
    log_capital = np.cumsum(np.log1p(stake * (risk - losses)))
    return bool((log_capital >= math.log(1 / error)).any())


def reach(table: Guarantee, level: float) -> str:
    """What a table holds, in a line."""
    held = {target: threshold for target, threshold in table if threshold is not None}
    if not held:
        return f"min_success: no target can be held with confidence {level:g} on these problems"
    raised = sum(threshold > target for target, threshold in held.items())
    how = f"thresholds of {raised} of them are above the target" if raised else "thresholds are the targets themselves"
    return f"min_success: {len(held)} targets up to {max(held):g} are held with confidence {level:g}; {how}"
