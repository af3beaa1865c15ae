"""The frontier of accuracy against cost: the best that mixtures of a method's settings reach, in every bootstrap draw.

Arrays are (draws, points); each draw has a frontier of its own. Mixing two settings at random gives every point on the
line between them, so the frontier is the upper convex hull, up to its highest point.
"""

from dataclasses import dataclass

import numpy as np

from routing_policies.base import FloatArray


@dataclass(frozen=True)
class Frontier:
    """Corners from the cheapest to the most accurate; the last one repeated where a draw has fewer."""

    cost: FloatArray
    """(draws, corners)"""
    accuracy: FloatArray

    def cost_at(self, accuracy: FloatArray) -> FloatArray:
        """The least cost of an accuracy, (draws,); NaN where the frontier stays below it."""
        reaches = self.accuracy >= accuracy[:, None] - 1e-12
        right = reaches.argmax(axis=1)
        left = np.maximum(right - 1, 0)
        (c0, a0), (c1, a1) = (self._corner(at) for at in (left, right))
        share = np.divide(accuracy - a0, a1 - a0, out=np.ones_like(a0), where=a1 > a0)
        return np.where(reaches.any(axis=1), c0 + share.clip(0, 1) * (c1 - c0), np.nan)

    def accuracy_at(self, cost: FloatArray) -> FloatArray:
        """The most accuracy within a cost, (draws,); the cheapest corner's where nothing is as cheap."""
        right = (self.cost < cost[:, None]).sum(axis=1).clip(max=self.cost.shape[1] - 1)
        left = np.maximum(right - 1, 0)
        (c0, a0), (c1, a1) = (self._corner(at) for at in (left, right))
        share = np.divide(cost - c0, c1 - c0, out=np.ones_like(c0), where=c1 > c0)
        found: FloatArray = a0 + share.clip(0, 1) * (a1 - a0)
        return found

    def area(self, low: FloatArray, high: FloatArray, floor: FloatArray) -> FloatArray:
        """Mean accuracy over costs from `low` to `high`, (draws,) each: AIQ.

        Left of its cheapest corner a frontier is a mixture of that and (low, floor), right of its last it is level.
        Source: Hu et al., "RouterBench: a benchmark for multi-LLM routing system", 2024, section 3: average improvement
        in quality, the area under the non-decreasing convex hull divided by the range of costs. Less `floor` it is
        P-AUCCC, the area under the Pareto cost-coverage curve above the cheapest arm (NVIDIA's model router).
        """
        cost = np.concatenate([low[:, None], self.cost, np.maximum(high, self.cost[:, -1])[:, None]], axis=1)
        accuracy = np.concatenate([floor[:, None], self.accuracy, self.accuracy[:, -1:]], axis=1)
        inside = cost.clip(low[:, None], high[:, None])
        # Where a segment crosses an end of the range, its part inside begins or stops on the line.
        run, rise = np.diff(cost, axis=1), np.diff(accuracy, axis=1)
        slope = np.divide(rise, run, out=np.zeros_like(run), where=run > 0)
        start, stop = inside[:, :-1], inside[:, 1:]
        middle = accuracy[:, :-1] + slope * ((start + stop) / 2 - cost[:, :-1])
        area: FloatArray = ((stop - start).clip(min=0) * middle).sum(axis=1)
        return np.divide(area, high - low, out=np.full_like(area, np.nan), where=high > low)

    def _corner(self, at: np.ndarray) -> tuple[FloatArray, FloatArray]:
        rows = np.arange(len(at))
        return self.cost[rows, at], self.accuracy[rows, at]


def frontier(cost: FloatArray, accuracy: FloatArray) -> Frontier:
    """The frontier of points, (draws, points) each: from the cheapest point on always the steepest way up."""
    rows = np.arange(len(cost))
    cheapest = cost.min(axis=1, keepdims=True)
    at = np.where(cost <= cheapest, accuracy, -np.inf).argmax(axis=1)
    corners = [at]
    while True:
        c, a = cost[rows, at][:, None], accuracy[rows, at][:, None]
        up = accuracy > a + 1e-12
        slope = np.divide(accuracy - a, cost - c, out=np.full(cost.shape, -np.inf), where=up & (cost > c))
        following = slope.argmax(axis=1)
        at = np.where(slope[rows, following] > -np.inf, following, at)
        if (at == corners[-1]).all():
            break
        corners.append(at)
    places = np.stack(corners, axis=1)  # (draws, corners)
    return Frontier(np.take_along_axis(cost, places, axis=1), np.take_along_axis(accuracy, places, axis=1))
