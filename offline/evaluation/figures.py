"""A method's figures, with intervals, against the best single arm and the limit."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from offline.evaluation.bootstrap import interval
from offline.evaluation.frontier import Frontier, frontier
from offline.evaluation.methods import Method, Trial
from offline.evaluation.two_models import apgr, cpt, recovered
from routing_policies.base import FloatArray

SHOWN = 120
"""Points of a frontier that a file holds beside its corners."""


@dataclass(frozen=True)
class Scale:
    """What figures refer to."""

    trial: Trial
    singles: list[Method]
    limit: Method | None
    """None where there are too few answers."""

    @cached_property
    def best(self) -> Method:
        return self.singles[self.trial.best_arm]

    @cached_property
    def best_accuracy(self) -> FloatArray:
        """(1 + draws,)"""
        return self.best.accuracy[:, 0]

    @cached_property
    def best_usd(self) -> FloatArray:
        return self.best.cost_usd[:, 0]

    @cached_property
    def limit_parity_saving(self) -> FloatArray:
        return np.full_like(self.best_usd, np.nan) if self.limit is None else self.parity_saving(hull(self.limit))

    @cached_property
    def cheapest(self) -> Method:
        return min(self.singles, key=lambda one: float(one.cost_usd[0, 0]))

    def parity_saving(self, corners: Frontier) -> FloatArray:
        """Cost saved where a frontier crosses the best single arm's accuracy, (1 + draws,); NaN: it stays below.

        A draw in which it stays below counts as nothing saved: left out, it would make the interval too good.
        """
        saving: FloatArray = 1 - corners.cost_at(self.best_accuracy) / self.best_usd
        saving[1:] = np.nan_to_num(saving[1:], nan=0.0)
        return saving

    def peak_gain(self, method: Method) -> FloatArray:
        """Accuracy over the best single arm at the setting of most accuracy, (1 + draws,)."""
        place = method.chosen if method.peak is None else method.peak
        gain: FloatArray = method.accuracy[:, place] - self.best_accuracy
        return gain

    def area(self, corners: Frontier) -> FloatArray:
        """AIQ over the costs of the single arms, (1 + draws,)."""
        usd = np.stack([one.cost_usd[:, 0] for one in self.singles])  # (arms, 1 + draws)
        return corners.area(self.cheapest.cost_usd[:, 0], usd.max(axis=0), self.cheapest.accuracy[:, 0])


def hull(method: Method) -> Frontier:
    return frontier(method.cost_usd, method.accuracy)


def figures(method: Method, scale: Scale) -> dict[str, Any]:
    """As `evaluation.json` holds them."""
    accuracy, usd = method.accuracy[:, method.chosen], method.cost_usd[:, method.chosen]
    saving = 1 - usd / scale.best_usd
    corners = hull(method)
    parity, peak, area = scale.parity_saving(corners), scale.peak_gain(method), scale.area(corners)
    gap = np.full_like(peak, np.nan) if scale.limit is None else _quotient(peak, scale.peak_gain(scale.limit))
    share = _quotient(parity, scale.limit_parity_saving)
    return {
        "name": method.name,
        "label": method.label,
        "group": method.group,
        "knob": method.settings[method.chosen] or None,
        "accuracy": to_json(accuracy),
        "cost_usd": to_json(usd),
        "accuracy_diff": to_json(accuracy - scale.best_accuracy),
        "saving": to_json(saving),
        "parity_saving": to_json(parity),
        "peak_accuracy_gain": to_json(peak),
        "aiq": to_json(area),
        "p_auccc": to_json(area - scale.cheapest.accuracy[:, 0]),
        "gap_closed": to_json(gap),
        "limit_share": to_json(share),
        **_two_models(method, scale),
        "mix": dict(zip(scale.trial.arms, method.mix.tolist(), strict=True)),
        "frontier": points(method, corners),
        "knob_spread": _spread(method, scale),
    }


def points(method: Method, corners: Frontier) -> list[dict[str, Any]]:
    """The frontier's corners, the chosen setting, and some between, in the knob's order."""
    count = len(method.settings)
    at_corner = np.flatnonzero(np.isin(method.cost_usd[0], corners.cost[0]))
    shown = {*np.linspace(0, count - 1, min(count, SHOWN)).round().astype(int).tolist(), *at_corner.tolist()}
    rows = sorted(shown | {method.chosen})
    low, high = np.quantile(method.accuracy[1:, rows], [0.025, 0.975], axis=0)
    return [
        {
            "knob": _knob(method, i),
            "accuracy": float(method.accuracy[0, i]),
            "accuracy_low": float(low[place]),
            "accuracy_high": float(high[place]),
            "cost_usd": float(method.cost_usd[0, i]),
        }
        for place, i in enumerate(rows)
    ]


def _knob(method: Method, place: int) -> Any:
    """A setting's number or list; a variant's name is no knob."""
    values = [value for name, value in (method.settings[place] or {}).items() if name != "variant"]
    return values[0] if values else None


def _spread(method: Method, scale: Scale) -> dict[str, Any] | None:
    """How far the knobs lie apart that resampled validation problems choose, and what they come to on test."""
    places = list(method.resampled)
    if not places:
        return None
    return {
        "values": [_knob(method, place) for place in places],
        "saving_sd": float((method.cost_usd[0, places] / scale.best_usd[0]).std()),
        "accuracy_sd": float(method.accuracy[0, places].std()),
    }


def _two_models(method: Method, scale: Scale) -> dict[str, Any]:
    """APGR and CPT, which are defined for two arms."""
    if len(scale.singles) != 2 or method.best_arm_share is None or len(method.settings) < 2:
        return {"apgr": None, "cpt50": None, "cpt80": None}
    weak = scale.singles[1 - scale.trial.best_arm].accuracy[:, 0]
    pgr = recovered(method.best_arm_share, method.accuracy, weak, scale.best_accuracy)
    return {"apgr": to_json(apgr(pgr)), "cpt50": cpt(pgr[0], 0.5), "cpt80": cpt(pgr[0], 0.8)}


def _quotient(a: FloatArray, b: FloatArray) -> FloatArray:
    """NaN where there is nothing to have a share of."""
    share: FloatArray = np.divide(a, b, out=np.full_like(a, np.nan), where=b > 0)
    return share


def to_json(figure: FloatArray) -> dict[str, float] | None:
    found = interval(figure)
    return None if found is None else found.to_json()
