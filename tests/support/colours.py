"""Rollouts of three arms on problems that have a colour, and `pika evaluate` as people type it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from offline.evaluation.command import main

QUICK = ("--draws", "20", "--methods", "utility")
ARMS = {"small": 0.5, "medium": 0.8, "large": 0.9}


def rollouts(n: int = 60, k: int = 4, seed: int = 0) -> pd.DataFrame:
    """Problems with a colour; where it is red, small is as good as large."""
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for split, size in (("train", 2 * n), ("validation", 2 * n), ("test", n)):
        for i in range(size):
            red = i % 2 == 0
            for arm, p in ARMS.items():
                correct = rng.random(k) < (0.9 if red else 0.15 if arm == "small" else p)
                rows.append(
                    {
                        "arm": arm,
                        "split": split,
                        "problem_id": f"{split}-{i}",
                        "problem": f"{split} question {i} is {'red' if red else 'blue'}?",
                        "benchmark": "colours",
                        "model": f"model of {arm}",
                        "k": k,
                        "correct": correct.tolist(),
                        "success_rate": correct.mean(),
                        "input_tokens": 20 + i % 3,
                        "output_tokens": [10 if arm == "small" else 40] * k,
                        "extracted_answers": ["7" if right else str(j) for j, right in enumerate(correct)],
                    }
                )
    return pd.DataFrame(rows)


def run(capsys: pytest.CaptureFixture[str], *argv: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    return code, captured.out, captured.err
