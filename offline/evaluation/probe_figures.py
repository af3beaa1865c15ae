"""How good each arm's probabilities are on the test problems, and how difficulty shows in where problems are sent."""

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from offline.evaluation.bootstrap import interval
from offline.evaluation.methods import Method, Trial
from offline.metrics import measure
from probes.measures import spearman
from routing_policies.base import FloatArray

if TYPE_CHECKING:
    from probes.artifact import Artifact
    from probes.card import Estimate

HUMAN = "human_difficulty"
ROC_POINTS = 100
BINS = 10


def probe(
    artifact: "Artifact", reference: str, p: FloatArray, rate: FloatArray, seed: int, draws: int
) -> dict[str, Any]:
    """Of one arm, (n,), (n,). Rank measures of labels that are all right or all wrong are null."""
    found = measure(p, rate, "test", seed, draws)
    ranked = 0 < rate.mean() < 1
    return {
        "kind": artifact.card.kind,
        "reference": reference,
        "auroc": _json(found.auroc) if ranked else None,
        "ece": _json(found.ece),
        "brier": _json(found.brier),
        "spearman": _json(found.spearman) if np.ptp(rate) > 0 and np.ptp(p) > 0 else None,
        "reliability": [
            {
                "predicted": bin_.predicted,
                "observed": bin_.observed.value,
                "low": bin_.observed.low,
                "high": bin_.observed.high,
                "problems": round(bin_.weight * len(p)),
            }
            for bin_ in found.reliability
        ],
        "roc": roc(p, rate) if ranked else [],
    }


def roc(p: FloatArray, rate: FloatArray) -> list[list[float]]:
    """(false positive rate, true positive rate) from (0, 0) to (1, 1), over all samples; some of the points."""
    order = np.argsort(-p, kind="stable")
    last = np.append(p[order][1:] < p[order][:-1], True)  # equal probabilities are one point
    right, wrong = rate[order].cumsum()[last], (1 - rate[order]).cumsum()[last]
    curve = np.stack([np.append(0.0, wrong / wrong[-1]), np.append(0.0, right / right[-1])], axis=1)
    shown = np.unique(np.linspace(0, len(curve) - 1, ROC_POINTS).round().astype(int))
    points: list[list[float]] = curve[shown].round(6).tolist()
    return points


def mix_by_difficulty(method: Method, trial: Trial) -> dict[str, Any]:
    """Where a method sends tenths of the problems, from the easiest on; difficulty = 1 - mean success rate of all
    arms, as measured."""
    assert method.arms is not None
    difficulty = 1 - trial.samples.success_rate.mean(axis=1)
    edges = np.unique(np.quantile(difficulty, np.linspace(0, 1, BINS + 1)).round(9))
    place = np.searchsorted(edges[1:-1], difficulty, side="right") if len(edges) > 2 else np.zeros(len(difficulty), int)
    bins = []
    for i in np.unique(place):
        inside = place == i
        mix = [float((method.arms[inside] == arm).mean()) for arm in range(len(trial.arms))]
        bins.append(
            {
                "low": float(difficulty[inside].min()),
                "high": float(difficulty[inside].max()),
                "problems": int(inside.sum()),
                "mix": dict(zip(trial.arms, mix, strict=True)),
            }
        )
    return {"method": method.name, "bins": bins}


def human_difficulty(trial: Trial, seed: int, draws: int) -> dict[str, Any] | None:
    """Spearman's correlation of human difficulty with each arm's, 1 - success rate; None where no problem has one."""
    told = [_human(text) for text in trial.samples.metadata or []]
    known = np.array([value is not None for value in told], dtype=np.bool_)
    if known.sum() < 3:
        return None
    human = np.array([value for value in told if value is not None])
    difficulty = 1 - trial.samples.success_rate[known]
    rng = np.random.default_rng(seed)
    rows = [np.arange(len(human)), *(rng.integers(len(human), size=len(human)) for _ in range(draws))]
    found = {}
    for arm, name in enumerate(trial.arms):
        figure = interval(np.array([spearman(human[row], difficulty[row, arm]) for row in rows]))
        if figure is not None:
            found[name] = figure.to_json()
    return {"column": f"metadata.{HUMAN}", "spearman": found}


def _human(text: Any) -> float | None:
    try:
        value = json.loads(text).get(HUMAN) if isinstance(text, str) else None
    except (ValueError, AttributeError):  # other files' metadata may be anything
        return None
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _json(estimate: "Estimate") -> dict[str, float]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}
