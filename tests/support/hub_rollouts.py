"""Rollouts of three arms, and `pika data` on them."""

import json
from typing import Any

import pyarrow as pa
import pytest

from offline.rollout_store import to_table
from server.__main__ import main

REPO = "ann/rollouts"
ARMS = {
    "small": {"model": "qwen", "source": "Qwen/Qwen2.5-Math-1.5B-Instruct", "temperature": 0.7, "max_tokens": 64},
    "low": {"model": "oss", "source": "openai/gpt-oss-20b", "reasoning_effort": "low", "max_tokens": 64},
    "high": {"model": "oss", "source": "openai/gpt-oss-20b", "reasoning_effort": "high", "max_tokens": 64},
}
CONFIGS = ["Qwen--Qwen2.5-Math-1.5B-Instruct", "openai--gpt-oss-20b_low", "openai--gpt-oss-20b_high"]


def row(arm: str, split: str, n: int) -> dict[str, Any]:
    correct = [(n + i) % 3 == 0 for i in range(4)]
    return {
        "problem_id": f"{split}-{n}",
        "split": split,
        "benchmark": "sums",
        "problem": f"What is {n} + {n} ({split})?",
        "formatted_prompt": f"<user>What is {n} + {n}?",
        "ground_truth": str(2 * n),
        "arm": arm,
        "model": ARMS[arm]["model"],
        "k": 4,
        "temperature": 0.7,
        "max_tokens": 64,
        "seed": 0,
        "generated_solutions": [f"\\boxed{{{2 * n if ok else 'ü'}}}" for ok in correct],
        "extracted_answers": [str(2 * n) if ok else "" for ok in correct],
        "correct": correct,
        "success_rate": sum(correct) / 4,
        "pass_at_k": float(any(correct)),
        "majority_vote_answer": "",
        "majority_vote_is_correct": sum(correct) > 2,
        "input_tokens": 10 + n,
        "output_tokens": [5, 6, 7, 8],
        "input_cost_usd_once": 1e-6,
        "total_output_cost_usd": 2e-6,
        "total_cost_usd": 3e-6,
    }


def rollouts(arms: list[str]) -> pa.Table:
    rows = [row(arm, split, n) for arm in arms for split in ("train", "validation", "test") for n in range(6)]
    return to_table(rows, {"command": "pika rollouts", "settings": {"arms": ARMS, "k": 4}})


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["data", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def fails(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    capsys.readouterr()
    assert main(["data", *arguments]) == code
    *_, error = capsys.readouterr().err.splitlines()  # progress comes before
    assert error.startswith(f"pika data {arguments[0]}: ")
    return error
