"""Does routing beat the controls on this data, and by how much: one plain sentence."""

from collections.abc import Mapping
from typing import Any

from offline.evaluation.bootstrap import Interval, interval
from offline.evaluation.figures import Scale
from offline.evaluation.methods import Method
from offline.policy_search import Target
from routing_policies.base import FloatArray

TOLERANCE = 0.003
"""Accuracy below the best single arm's that its interval must reach above, to count as equal."""
RIVALS = {
    "shuffled": "its shuffled control",
    "random_mixture": "a random mixture of arms",
    "length": "routing by length",
    "tfidf": "routing by TF-IDF",
}


def verdict(router: Method, rivals: Mapping[str, FloatArray], scale: Scale, target: Target) -> dict[str, Any]:
    """
    Args:
        rivals: accuracy at the router's cost of what knows less, (1 + draws,) each, by the names of `RIVALS`.
    """
    accuracy, usd = router.accuracy[:, router.chosen], router.cost_usd[:, router.chosen]
    gains = {name: _known(accuracy - rival) for name, rival in rivals.items()}
    difference, saving = _known(accuracy - scale.best_accuracy), _known(1 - usd / scale.best_usd)
    # Where another target was asked for, the best single arm's accuracy was not.
    pays = target.value is not None or (saving.low > 0 and difference.high > -TOLERANCE) or difference.low > 0
    lost = [name for name, gain in gains.items() if gain.low <= 0]
    beats = pays and not lost
    best = scale.trial.arms[scale.trial.best_arm]
    opening = (
        f"Routing by {router.label} {'beats' if beats else 'does not beat'} the controls on these "
        f"{len(router.correct):,} test problems: {_cost(saving)} than always {best} at {_points(difference)} of "
        "accuracy"
    )
    if beats:
        nearest = min(gains, key=lambda name: gains[name].value)
        told = f"{_points(gains[nearest])} over {RIVALS[nearest]}, the nearest of them"
        sentence = f"{opening}, and at equal cost {told} (95% intervals)."
    else:
        reasons = [] if pays else [f"it is not surely better than always {best}"]
        if lost:
            told = ", ".join(f"{RIVALS[name]} ({_points(gains[name])})" for name in lost)
            reasons.append(f"at equal cost it is not surely more accurate than {told}")
        sentence = f"{opening}; {' and '.join(reasons)} (95% intervals)."
    return {
        "beats_controls": beats,
        "method": router.name,
        "sentence": sentence,
        "accuracy_gain_at_equal_cost": {name: gain.to_json() for name, gain in gains.items()},
    }


def _points(figure: Interval) -> str:
    """A difference of accuracies in percentage points."""
    value, low, high = (round(100 * one, 1) + 0.0 for one in (figure.value, figure.low, figure.high))
    return f"{value:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _cost(saving: Interval) -> str:
    less = saving.value >= 0
    value, low, high = (
        round(100 * one) + 0.0
        for one in ((saving.value, saving.low, saving.high) if less else (-saving.value, -saving.high, -saving.low))
    )
    return f"{value:.0f}% [{low:.0f}, {high:.0f}] {'less' if less else 'more'} cost"


def _known(figure: FloatArray) -> Interval:
    found = interval(figure)
    assert found is not None  # accuracies and costs are finite
    return found
