"""Rollouts as the research project publishes them, as rows of ours.

Its rows have `problem`, `generated_solutions` (of each sample its text, score and output tokens), `success_rate`,
`majority_vote_is_correct`, `k`, `temperature`, `max_len`; the configuration's name tells the model and its effort. What
it does not record stays empty, or zero.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from offline.evaluate import DataError

Row = Mapping[str, Any]


def our_row(row: Row, config: str, split: str, benchmark: str) -> dict[str, Any]:
    """
    Raises:
        DataError: the row has no problem, or nothing tells how often it was solved.
    """
    problem = row.get("problem") or row.get("question")
    if not isinstance(problem, str):
        raise DataError(f"configuration {config!r} has no column `problem` or `question` with texts")
    samples = row.get("generated_solutions")
    samples = list(samples) if isinstance(samples, list) else [row["generation"]] if row.get("generation") else []
    details = [sample if isinstance(sample, dict) else {"text": str(sample)} for sample in samples]
    majority = row.get("majority_vote_is_correct")
    correct = [bool(_number(one["score"]) >= 0.5) for one in details if one.get("score") is not None]
    rate = row.get("success_rate")
    if rate is None and correct:
        rate = sum(correct) / len(correct)
    if rate is None and majority is not None:
        rate = float(bool(majority))  # all that is on record
    if rate is None:
        raise DataError(f"configuration {config!r} tells neither success_rate nor which answers are correct")
    known = row.get("problem_id")  # a hash of the text there too; a number would count each configuration's own rows
    output_cost = sum(_number(one.get("output_cost_usd")) for one in details)
    input_cost = _number(row.get("input_cost_usd_once"))
    return {
        # The same problem has the same id in all configurations.
        "problem_id": known if isinstance(known, str) and known else hashlib.sha256(problem.encode()).hexdigest()[:16],
        "split": split,
        "benchmark": str(row.get("benchmark") or row.get("task") or benchmark),
        "problem": problem,
        "formatted_prompt": str(row.get("formatted_prompt") or ""),
        "ground_truth": str(row.get("ground_truth") or row.get("answer") or ""),
        "arm": config,
        "model": config.replace("--", "/", 1),
        "k": int(_number(row.get("k")) or len(details) or 1),
        "temperature": _number(row.get("temperature")),
        "max_tokens": int(_number(row.get("max_tokens") or row.get("max_len"))),
        "seed": int(_number(row.get("seed"))),
        "generated_solutions": [str(one.get("text") or "") for one in details],
        "extracted_answers": [str(one.get("extracted_answer") or "") for one in details],
        "correct": correct,
        "success_rate": float(rate),
        "pass_at_k": float(_number(row.get("pass_at_k")) or rate > 0),
        "majority_vote_answer": str(row.get("majority_vote_extracted_answer") or ""),
        "majority_vote_is_correct": bool(majority) if majority is not None else rate > 0.5,
        "input_tokens": int(_number(next((one["input_tokens"] for one in details if "input_tokens" in one), None))),
        "output_tokens": [int(_number(one.get("output_tokens"))) for one in details],
        "input_cost_usd_once": input_cost,
        "total_output_cost_usd": output_cost,
        "total_cost_usd": input_cost + output_cost,
    }


def _number(value: object) -> float:
    """0 where there is none."""
    if not isinstance(value, (int, float)) or (isinstance(value, float) and math.isnan(value)):
        return 0.0
    return float(value)
