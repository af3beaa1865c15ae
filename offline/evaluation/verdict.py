"""Does routing beat the controls on this data, and by how much: one plain sentence."""

from typing import Any

import numpy as np

from offline.evaluation.bootstrap import Interval, interval
from offline.evaluation.figures import Scale, hull
from offline.evaluation.methods import Method
from offline.policy_search import Target
from routing_policies.base import FloatArray

TOLERANCE = 0.003
"""Accuracy below the best single arm's that its interval must reach above, to count as equal."""


def verdict(router: Method, shuffled: Method, texts: list[Method], scale: Scale, target: Target) -> dict[str, Any]:
    """
    Args:
        texts: routers that read text alone; empty where the router's own probes do.
    """
    accuracy, usd = router.accuracy[:, router.chosen], router.cost_usd[:, router.chosen]
    over = {
        "shuffled": accuracy - shuffled.accuracy[:, shuffled.chosen],
        "random_mixture": accuracy - arms_alone(scale, usd),
        **{text.name: accuracy - np.maximum(hull(text).accuracy_at(usd), arms_alone(scale, usd)) for text in texts},
    }
    gains = {name: _known(figure) for name, figure in over.items()}
    difference, saving = _known(accuracy - scale.best_accuracy), _known(1 - usd / scale.best_usd)
    single = (saving.low > 0 and difference.high > -TOLERANCE) or difference.low > 0
    if target.value is not None:  # the best single arm's accuracy was not asked for
        single = True
    lost = [name for name, gain in gains.items() if gain.low <= 0]
    beats = single and not lost
    return {
        "beats_controls": beats,
        "method": router.name,
        "sentence": _sentence(router, scale, difference, saving, gains, lost, single),
        "accuracy_gain_at_equal_cost": {name: gain.to_json() for name, gain in gains.items()},
    }


def arms_alone(scale: Scale, usd: FloatArray) -> FloatArray:
    """The most accurate random mixture of single arms within a cost, (1 + draws,)."""
    accuracy = np.concatenate([one.accuracy for one in scale.singles], axis=1)
    cost = np.concatenate([one.cost_usd for one in scale.singles], axis=1)
    every = Method("", "", "control", (), 0, accuracy, cost, accuracy[0], cost[0], accuracy[0])
    return hull(every).accuracy_at(usd)


WORDS = {
    "shuffled": "the cost-matched shuffled control",
    "random_mixture": "random mixtures of the arms at equal cost",
    "length": "routing by length at equal cost",
    "tfidf": "TF-IDF routing at equal cost",
}


def _sentence(
    router: Method,
    scale: Scale,
    difference: Interval,
    saving: Interval,
    gains: dict[str, Interval],
    lost: list[str],
    single: bool,
) -> str:
    """Every sentence says accuracy and cost against the best single arm, then what it is compared with."""
    best = scale.trial.arms[scale.trial.best_arm]
    does = "beats" if single and not lost else "does not beat"
    what = (
        f"Routing by {router.label} {does} the controls on these {len(router.correct):,} test problems: "
        f"{_points(difference)} of accuracy against always {best} at {_cost(saving)}; "
    )
    if single and not lost:
        told = ", ".join(f"{_points(gains[name])} over {WORDS[name]}" for name in gains)
        return f"{what}it gains {told} (95% intervals)."
    reasons = [f"its gain over {WORDS[name]} is {_points(gains[name])}" for name in lost]
    if not single:
        reasons.insert(0, f"always {best} is as good or better")
    return f"{what}{' and '.join(reasons)} (95% intervals)."


def _points(figure: Interval) -> str:
    """A difference of accuracies in percentage points."""
    value, low, high = (100 * one + 0.0 for one in (figure.value, figure.low, figure.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _cost(saving: Interval) -> str:
    less = saving.value >= 0
    low, high = (saving.low, saving.high) if less else (-saving.high, -saving.low)
    return f"{abs(saving.value):.0%} [{low:.0%}, {high:.0%}] {'less' if less else 'more'} cost"


def _known(figure: FloatArray) -> Interval:
    found = interval(figure)
    assert found is not None  # accuracies and costs are finite
    return found
