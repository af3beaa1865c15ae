"""Probe folders in the research project's form, written with scikit-learn and joblib as its code does."""

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import LogisticRegression, Ridge

D_MODEL = 96


def legacy_folder(folder: Path, task: str = "classification", seed: int = 0, **changes: Any) -> Path:
    """A probe at layer 1, position -2 of a model of 96 dimensions, such as nano-small.

    Args:
        changes: to both JSON files where they have the key, else to config.json; None takes the key out.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(80, D_MODEL)).astype(np.float32)
    rate = rng.integers(0, 6, size=80) / 5
    correct = (rate > 0.5).astype(float)
    folder.mkdir(parents=True)
    label = "majority_vote_is_correct" if task == "classification" else "success_rate"
    metadata = {
        "best_layer_idx": 1,
        "best_pos_idx": 3,
        "best_position_value": -2,
        "best_alpha": 10,
        "best_val_score": 0.7,
        "test_score": None,
        "model_name": "acme/nano-small",
        "d_model": D_MODEL,
        "task_type": task,
        "spearman": float("nan"),
    }
    if task == "classification":
        probe = LogisticRegression(C=0.1, fit_intercept=False).fit(x, correct)
        scaler = LogisticRegression().fit(probe.decision_function(x).reshape(-1, 1), correct)
        joblib.dump(scaler, folder / "platt_scaler.joblib")
        metadata["has_platt_scaler"] = True
    else:
        probe = Ridge(alpha=10, fit_intercept=False).fit(x, rate)
    joblib.dump(probe, folder / "best_probe.joblib")
    shared = ("best_layer_idx", "best_position_value", "best_alpha", "d_model", "task_type", "model_name")
    config = {
        **{key: metadata[key] for key in shared},
        "probe_name": folder.name,
        "dataset": "nano",
        "probe_type": "linear_eoi_probe",
        "label_type": label,
        "k": 5,
        "temperature": 0.7,
        "max_len": 3000,
        "test_score": 0.6,
        "best_val_score": 0.7,
        "files": sorted(file.name for file in folder.iterdir()),
        "exported_at": "2026-02-11T12:00:00",
    }
    for key, value in changes.items():
        for facts in (config, metadata):
            if key in facts or facts is config:
                facts[key] = value
            if value is None:
                facts.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "probe_metadata.json").write_text(json.dumps(metadata))
    return folder
