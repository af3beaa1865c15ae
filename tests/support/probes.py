"""Small probe artifacts on the nano pool's models."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from probes.artifact import Artifact, load_artifact, save_artifact
from probes.card import Calibration, Estimate, Metrics, ProbeCard
from probes.linear_eoi import LinearEoi
from probes.prompt import CANARY_PROMPT, Renderer, new_pass

NANO_POOL = Path(__file__).parents[2] / "offline/nano_pool"
D_MODEL = {"nano-small": 96, "nano-medium": 96, "nano-large": 160}


def card(model: str = "nano-small", layer: int = 1, position: int = -1, **changes: Any) -> ProbeCard:
    """A card that fits the nano model, but for what is changed."""
    renderer = Renderer(new_pass(str(NANO_POOL / model)))
    some = Estimate(value=0.8, low=0.7, high=0.9)
    metrics = Metrics(split="test", n=100, auroc=some, spearman=some, ece=some, brier=some)
    fields: dict[str, Any] = {
        "kind": "linear_eoi",
        "pass": renderer.pass_,
        "site": {"layer": layer, "position": position},
        "d_model": D_MODEL[model],
        "canary_prompt": CANARY_PROMPT,
        "canary_token_ids": renderer.tokenize(CANARY_PROMPT),
        "target": {"arm": "large", "model": "nano-large", "temperature": 0.7, "max_tokens": 64, "k": 8},
        "benchmark": "running_total",
        "calibration": Calibration(scale=2.0, bias=-0.5),
        "metrics": [metrics],
        "baselines": {"length": metrics, "tfidf": metrics},
        "mean_tokens": {"input": 45, "output": 35},
        "training": {},
        "versions": {},
        "probe_name": "large",
        "model_name": "nano-large",
        "dataset": "running_total",
        "probe_type": "linear_eoi_probe",
        "label_type": "success_rate",
        "k": 8,
        "temperature": 0.7,
        "max_len": 64,
        "best_layer_idx": layer,
        "best_position_value": position,
        "best_alpha": 1.0,
        "task_type": "regression",
        "test_score": 0.8,
        "best_val_score": 0.8,
        "files": ["config.json", "probe.safetensors"],
        "exported_at": "2026-01-01T00:00:00+00:00",
    }
    return ProbeCard.model_validate(fields | changes)


def artifact(folder: Path, model: str = "nano-small", layer: int = 1, position: int = -1, seed: int = 0) -> Artifact:
    """A probe with random weights, written and read again."""
    weight = np.random.default_rng(seed).normal(size=D_MODEL[model]).astype(np.float32) / 10
    made = card(model, layer, position)
    relative = os.path.relpath(NANO_POOL / model, folder)
    assert made.pass_ is not None
    assert made.site is not None
    pass_ = made.pass_.model_copy(update={"probe_model": relative})
    save_artifact(folder, made.model_copy(update={"pass_": pass_}), LinearEoi(weight, made.site))
    return load_artifact(folder)
