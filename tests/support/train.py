"""`pika train` on some of the nano pool's rollouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from offline.label import load_probes, predict
from offline.train import main
from probes.base import FloatArray
from server.config import Settings
from tests.support.probes import NANO_POOL

POOL = NANO_POOL / "pool.yaml"
ARMS = ("nano-small", "nano-medium", "nano-large")
PROBLEMS = {"train": 400, "validation": 150, "test": 150}


def some_rollouts() -> pd.DataFrame:
    """Some of the nano pool's rollouts: the first problems of each split, every arm."""
    whole = pd.read_parquet(NANO_POOL / "rollouts.parquet")
    parts = [
        whole[(whole["arm"] == arm) & (whole["split"] == split)].head(n)
        for arm in ARMS
        for split, n in PROBLEMS.items()
    ]
    return pd.concat(parts)


def success(settings: Settings, problems: list[str]) -> FloatArray:
    return predict(settings, load_probes(settings), problems).success


def train(data: pd.DataFrame, folder: Path, *options: str, model: str = "nano-small") -> int:
    data.to_parquet(folder / "rollouts.parquet")
    required = [str(POOL), "--data", str(folder / "rollouts.parquet"), "--out", str(folder / "probes")]
    required += ["--cache", str(folder / "cache")]
    return main([*required, "--probe-model", str(NANO_POOL / model), *options])


def of(arm: str, split: str) -> Callable[[pd.DataFrame], Any]:
    return lambda data: (data["arm"] == arm) & (data["split"] == split)


QUICK = ("--layers", "1", "--positions", "-1")
