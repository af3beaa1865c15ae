"""The cost-accuracy frontier as it is drawn: points, texts and styles, for the plot and for the page alike."""

import math
import re
from collections import Counter
from dataclasses import dataclass

from offline.report.figures import DASH, PERCENT, knob
from offline.report.model import Evaluation, Method, Point
from offline.report.palette import Style, styles
from offline.report.tables import money, ordered

MOST_POINTS = 200
"""Per curve; of more, every so many-th is drawn."""
WIDE = 8.0
"""Costs that lie further apart than this are shown on a logarithmic axis."""


@dataclass(frozen=True)
class Spot:
    """A point of the plot, and what is said of it."""

    cost: float
    """In the unit of `Frontier.cost_unit`."""
    accuracy: float
    low: float
    high: float
    cost_text: str
    accuracy_text: str
    saving_text: str
    knob_text: str


@dataclass(frozen=True)
class Curve:
    name: str
    label: str
    short: str
    """The label's first words, where those are no other's too."""
    group: str
    variant: bool
    """Whether it is another form of a policy, and at first not shown."""
    style: Style
    chosen: Spot
    """At the knob that validation problems chose."""
    points: tuple[Spot, ...]
    """Over all knobs, cheapest first; empty where there is none to turn."""


@dataclass(frozen=True)
class Frontier:
    cost_unit: str
    logarithmic: bool | None
    """What to show first; None where a cost is 0, which has no logarithm."""
    best: str
    """The best single arm."""
    router: str | None
    """The method of the verdict."""
    curves: tuple[Curve, ...]

    @property
    def spots(self) -> list[Spot]:
        return [spot for curve in self.curves for spot in (curve.chosen, *curve.points)]


def frontier(evaluation: Evaluation) -> Frontier:
    usd, methods = money(evaluation), ordered(evaluation)
    names, variants = short_names(methods), evaluation.variants
    style = styles(sorted(methods, key=lambda method: method.name in variants))

    def spot(cost: float, accuracy: float, low: float, high: float, knob_text: str) -> Spot:
        best_usd = evaluation.best.cost_usd.value
        return Spot(
            cost * usd.unit.scale,
            accuracy,
            low,
            high,
            usd.unit.text(cost),
            f"{PERCENT.text(accuracy)} [{PERCENT.text(low)}, {PERCENT.text(high)}]",
            PERCENT.text(1 - cost / best_usd) if best_usd else DASH,
            knob_text,
        )

    def curve(method: Method) -> Curve:
        at = method.accuracy
        chosen = spot(method.cost_usd.value, at.value, at.low, at.high, knob(method.knob))
        points = [
            spot(p.cost_usd, p.accuracy, p.accuracy_low, p.accuracy_high, knob(p.knob))
            for p in thinned(method.frontier)
        ]
        return Curve(
            name=method.name,
            label=method.label,
            short=names[method.name],
            group=method.group,
            variant=method.name in variants,
            style=style[method.name],
            chosen=chosen,
            points=tuple(points),
        )

    curves = tuple(curve(method) for method in methods)
    costs = [spot.cost for one in curves for spot in (one.chosen, *one.points)]
    wide = None if min(costs) <= 0 else max(costs) > WIDE * min(costs)
    return Frontier(usd.per, wide, evaluation.best_single, evaluation.verdict.method, curves)


def short_names(methods: list[Method]) -> dict[str, str]:
    """Labels up to their first bracket, colon or comma, where that tells methods apart; of single arms the arm's."""
    heads = {m.name: re.split(r" \(|[:,]", m.label)[0] for m in methods}
    heads |= {m.name: max(m.mix, key=lambda arm: m.mix[arm]) for m in methods if m.group == "single" and m.mix}
    counts = Counter(heads.values())
    return {m.name: heads[m.name] if counts[heads[m.name]] == 1 else m.label for m in methods}


def thinned(points: tuple[Point, ...]) -> list[Point]:
    """Cheapest first, at most `MOST_POINTS` and the last."""
    by_cost = sorted(points, key=lambda point: (point.cost_usd, point.accuracy))
    if len(by_cost) < 2:  # a single point is the chosen one
        return []
    step = math.ceil(len(by_cost) / MOST_POINTS)
    kept = by_cost[::step]
    return kept if kept[-1] is by_cost[-1] else [*kept, by_cost[-1]]
