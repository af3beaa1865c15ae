"""Thresholds per step of a cascade, searched on validation problems.

For each weight of cost, thresholds are sought that maximise the mean predicted success less the weighted expected cost.
One step's best threshold, the others held, is found exactly among all cuts; steps take turns, the last one first.
"""

import numpy as np

from offline.evaluation.sweep import multipliers
from routing_policies.base import FloatArray

WEIGHTS = 60
ROUNDS = 3


def step_thresholds(success: FloatArray, cost: FloatArray, tier_cost: tuple[float, ...]) -> list[list[float]]:
    """Thresholds from each arm to the next dearer one, a list for each weight of cost, without repetitions.

    Args:
        success: success probabilities, (n, k).
        cost: expected USD of one answer, (n, k).
        tier_cost: mean USD of one answer per arm, (k,).
    """
    order = np.argsort(np.asarray(tier_cost), kind="stable")
    p, usd = success[:, order], cost[:, order]
    found = {tuple(_search(p, p - mu * usd)) for mu in multipliers(success, cost, WEIGHTS).tolist()}
    return [list(thresholds) for thresholds in sorted(found)]


def _search(p: FloatArray, value: FloatArray) -> list[float]:
    """Thresholds (k - 1,) for arms in order of cost, (n, k) each: stop where p > threshold, for `value`."""
    n, k = p.shape
    thresholds = np.zeros(k - 1)
    for turn in range(ROUNDS):
        going = value[:, -1]  # what escalating beyond the step comes to
        for step in reversed(range(k - 1)):
            # At first no step's predecessor has a threshold yet: all problems count.
            reached = np.ones(n, dtype=np.bool_) if turn == 0 else (p[:, :step] <= thresholds[:step]).all(axis=1)
            if reached.any():
                thresholds[step] = _cut(p[reached, step], (value[:, step] - going)[reached])
            going = np.where(p[:, step] > thresholds[step], value[:, step], going)
    found: list[float] = thresholds.tolist()
    return found


def _cut(p: FloatArray, gain: FloatArray) -> float:
    """The threshold above which the sum of gains is greatest, (n,), (n,); the highest of equals."""
    order = np.argsort(-p, kind="stable")
    p, total = p[order], np.concatenate([[0.0], gain[order].cumsum()])  # total[i]: the first i stop
    ends = np.append(p, 0.0)  # the first i stop where the threshold is the next one's probability
    separate = np.append(True, p[1:] < p[:-1])
    separate = np.append(separate, True)
    best = int(np.where(separate, total, -np.inf).argmax())
    return 1.0 if best == 0 else float(f"{min(max(ends[best], 0.0), 1.0):.6g}")
