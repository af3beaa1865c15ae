"""A folder as `pika evaluate` leaves it, made of simulated problems: every figure in it follows from its own draws."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from offline.provenance import sha256

COST_USD = np.array([2e-6, 6e-6, 9e-5])
SKILL = np.array([0.2, 1.8, 3.0])
BINS = 8


def build(names: Sequence[str] = ("small", "medium", "large"), n: int = 400, seed: int = 0) -> dict[str, Any]:
    """The content of evaluation.json, with a `rates` (n, arms) and a `chosen` (n,) by method beside it."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(0, 2, n)
    p = 1 / (1 + np.exp(-(ease[:, None] + SKILL + rng.normal(0, 0.3, (n, 3)))))
    rates = rng.binomial(8, p) / 8  # (n, arms)
    predicted = 1 / (1 + np.exp(-(ease[:, None] + SKILL + rng.normal(0, 0.8, (n, 3)))))
    shuffled = predicted[rng.permutation(n)]
    knobs = np.linspace(0, 1.5, 31)
    cheap = (COST_USD - COST_USD[0]) / (COST_USD[-1] - COST_USD[0])
    chosen: dict[str, Any] = {}

    def result(arms: Any) -> tuple[dict[str, float], float]:
        return _interval(rates[np.arange(n), arms], rng), float(COST_USD[arms].mean())

    def method(name: str, label: str, group: str, sweep: list[Any], knob: dict[str, Any] | None, at: int) -> Any:
        points = []
        for value, arms in zip(knobs, sweep, strict=False):
            accuracy, cost = result(arms)
            bounds = {f"accuracy_{end}": accuracy[end] for end in ("low", "high")}
            points.append({"knob": float(value), "accuracy": accuracy["value"], **bounds, "cost_usd": cost})
        chosen[name] = sweep[at]
        accuracy, cost = result(sweep[at])
        difference = rates[np.arange(n), sweep[at]] - rates[:, 2]
        router = len(sweep) > 1
        mix = {arm: float((sweep[at] == i).mean()) for i, arm in enumerate(names)}
        return {
            "name": name,
            "label": label,
            "group": group,
            "knob": knob,
            "accuracy": accuracy,
            "cost_usd": _around(cost, 0.04),
            "accuracy_diff": _interval(difference, rng),
            "saving": _around(1 - cost / COST_USD[2], 0.03),
            "parity_saving": _around(0.5, 0.1) if router else None,
            "peak_accuracy_gain": _around(max(p["accuracy"] for p in points) - rates[:, 2].mean(), 0.2)
            if router
            else None,
            "aiq": _around(float(np.mean([p["accuracy"] for p in points])), 0.01) if router else None,
            "p_auccc": _around(0.3, 0.1) if router else None,
            "gap_closed": _around(0.4, 0.2) if router else None,
            "limit_share": _around(0.7, 0.1) if router else None,
            "apgr": None,
            "cpt50": None,
            "cpt80": None,
            "mix": mix,
            "frontier": points if router else [],
            "knob_spread": None,
        }

    def utility(success: Any) -> list[Any]:
        return [(success - lam * cheap).argmax(axis=1) for lam in knobs]

    singles = [
        method(f"always:{name}", f"always {name}", "single", [np.full(n, i)], None, 0) for i, name in enumerate(names)
    ]
    cascades = [np.where(predicted[:, 0] > t, 0, np.where(predicted[:, 1] > t, 1, 2)) for t in np.linspace(1, 0.3, 31)]
    methods = [
        method("utility", "utility (λ)", "policy", utility(predicted), {"lambda": float(knobs[4])}, 4),
        method("cascade", "cascade", "policy", cascades, {"thresholds": [0.7, 0.65]}, 12),
        *singles,
        method(
            "random", "random mixture", "control", [(rng.random(n) < s) * 2 for s in knobs / 1.5], {"share": 0.5}, 15
        ),
        method("shuffled", "shuffled control", "control", utility(shuffled), {"lambda": float(knobs[4])}, 4),
        method("length", "length probe", "baseline", utility(0.5 * shuffled + 0.5 * predicted), {"lambda": 0.2}, 4),
        method("limit", "limit before generation", "oracle", utility(p), {"lambda": 0.1}, 3),
    ]
    methods[0]["knob_spread"] = {
        "values": knobs[rng.integers(3, 6, 50)].tolist(),
        "saving_sd": 0.013,
        "accuracy_sd": 0.0021,
    }
    difficulty = 1 - rates.mean(axis=1)
    edges = np.linspace(0, 1, BINS + 1)
    bins_ = np.minimum((difficulty * BINS).astype(int), BINS - 1)

    def bins(name: str) -> list[dict[str, Any]]:
        return [
            {
                "low": float(edges[b]),
                "high": float(edges[b + 1]),
                "problems": int((bins_ == b).sum()),
                "mix": {
                    arm: float((chosen[name][bins_ == b] == i).mean()) if (bins_ == b).any() else 0.0
                    for i, arm in enumerate(names)
                },
            }
            for b in range(BINS)
        ]

    saving = methods[0]["saving"]["value"]
    return {
        "evaluation": {
            "schema_version": 1,
            "provenance": {"command": "pika evaluate pool.yaml", "versions": {"pika-router": "0.1.0"}, "seed": seed},
            "data": {
                "file": "rollouts.parquet",
                "benchmark": "running_total",
                "problems": {"validation": 200, "test": n},
                "k": dict.fromkeys(names, 8),
                "duplicates_removed": 3,
            },
            "notes": ["Simulated problems: no model has answered anything."],
            "arms": [_arm(name, i, rates, predicted, rng) for i, name in enumerate(names)],
            "best_single": names[2],
            "methods": methods,
            "mix_by_difficulty": [{"method": name, "bins": bins(name)} for name in ("utility", "cascade")],
            "human_difficulty": None,
            "verdict": {
                "beats_controls": True,
                "method": "utility",
                "sentence": f"Routing beats the controls here: utility (λ) saves {saving:.1%} of the cost.",
                "accuracy_gain_at_equal_cost": {"shuffled": _around(0.031, 0.3), "random": _around(0.104, 0.2)},
            },
        },
        "rates": rates,
        "chosen": chosen,
    }


def write(folder: Path, built: dict[str, Any]) -> Path:
    """results.parquet and evaluation.json; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = built["rates"]
    frame = pd.DataFrame({"problem_id": [f"t{i}" for i in range(len(rates))], "problem": "How many?"})
    names = [arm["name"] for arm in built["evaluation"]["arms"]]
    for i, name in enumerate(names):
        frame[f"success:{name}"], frame[f"cost:{name}"] = rates[:, i], COST_USD[i]
    for name, arms in built["chosen"].items():
        frame[f"arm:{name}"] = [names[arm] for arm in arms]
    frame.to_parquet(folder / "results.parquet")
    built["evaluation"]["results_sha256"] = sha256(folder / "results.parquet")
    (folder / "evaluation.json").write_text(json.dumps(built["evaluation"]), encoding="utf-8")
    return folder


def _arm(name: str, i: int, rates: Any, predicted: Any, rng: np.random.Generator) -> dict[str, Any]:
    right = rates[:, i] >= 0.5
    order = np.argsort(-predicted[:, i], kind="stable")
    roc = [(np.cumsum(~right[order]) / max((~right).sum(), 1)), (np.cumsum(right[order]) / max(right.sum(), 1))]
    edges = np.array_split(order[::-1], 10)
    reliability = []
    for rows in edges:
        observed = _interval(rates[rows, i], rng)
        reliability.append(
            {
                "predicted": float(predicted[rows, i].mean()),
                "observed": observed["value"],
                "low": observed["low"],
                "high": observed["high"],
                "problems": len(rows),
            }
        )
    return {
        "name": name,
        "model": f"owner/{name}",
        "accuracy": _interval(rates[:, i], rng),
        "cost_usd": _around(float(COST_USD[i]), 0.01),
        "tier_cost_usd": float(COST_USD[i]),
        "mean_input_tokens": 31.4,
        "mean_output_tokens": 35.2,
        "probe": {
            "kind": "linear_eoi",
            "reference": f"probes/{name}",
            "auroc": _around(float(np.trapezoid(roc[1], roc[0])), 0.02),
            "ece": _around(float(abs(predicted[:, i].mean() - rates[:, i].mean())), 0.3),
            "brier": _around(float(((predicted[:, i] - rates[:, i]) ** 2).mean()), 0.1),
            "spearman": _around(0.8, 0.03),
            "reliability": reliability,
            "roc": [[0.0, 0.0], *np.stack(roc, axis=1).tolist()],
        },
    }


def _interval(values: Any, rng: np.random.Generator) -> dict[str, float]:
    means = values[rng.integers(len(values), size=(200, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"value": float(values.mean()), "low": float(low), "high": float(high)}


def _around(value: float, share: float) -> dict[str, float]:
    return {"value": value, "low": value - abs(value) * share, "high": value + abs(value) * share}
