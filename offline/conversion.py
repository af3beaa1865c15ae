"""From the answers of a correctness set to rows of rollouts: each problem once, by all models, in one split."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from offline.answer_table import Answers
from offline.evaluate import DataError, same_text, split_name
from offline.provenance import RECORDED

CHARACTERS_PER_TOKEN = 4
ESTIMATED = f"estimated: characters / {CHARACTERS_PER_TOKEN}"
OUTPUT_TOKENS = 256
"""Of an answer whose text and tokens are not on record."""
SHARES = {"train": 0.6, "validation": 0.2, "test": 0.2}

Row = dict[str, Any]


@dataclass(frozen=True)
class Converted:
    """Rows of `rollout_store.SCHEMA`, and what was done to the problems to get them."""

    rows: list[Row]
    tokens: str = RECORDED
    duplicates_removed: int = 0
    """Problems that repeated another's text."""
    incomplete_dropped: int = 0
    """Problems that some arm lacked."""
    notes: tuple[str, ...] = ()
    """What a reader of figures must know, a sentence each."""


@dataclass(frozen=True)
class Sampled:
    """How the answers came to be, as far as the user knows; 0 where not."""

    benchmark: str
    temperature: float = 0.0
    max_tokens: int = 0
    k: int | None = None
    """Take the first k answers of each model to each problem; None: all, which must be equally many."""
    output_tokens: Mapping[str, int] | None = None
    """Of a model's answers that are not on record; `""`: of any other's."""


def rollouts(answers: Answers, arms: Mapping[str, str], sampled: Sampled) -> Converted:
    """One row per problem and model with its k answers, in the order of arms and problems.

    Rows of one model with the same problem, id and split are its k answers. The same text under another id or in
    another split is a duplicate, and left out.

    Args:
        arms: the arm's name by model.

    Raises:
        DataError: an id stands for several problems, or a model has fewer answers than asked for.
    """
    groups, ids, duplicates = _grouped(answers)
    for model, of_model in groups.items():
        most = max(map(len, of_model.values()), default=0)
        if most < (sampled.k or 1):
            raise DataError(
                f"model {model!r} has at most {most} answers with a verdict to a problem: {sampled.k or 1} are needed"
            )
    rows = [
        _row(answers, indices, ids[text], arm, model, sampled)
        for model, arm in arms.items()
        for text, indices in groups[model].items()
    ]
    missing = sum(value is None for value in answers.columns["correct"])
    tokens, notes = _told_of_tokens(answers, sampled)
    if missing:
        notes += (f"{missing} answers without a verdict were left out.",)
    return Converted(rows, tokens, duplicates, 0, notes)


def _grouped(answers: Answers) -> tuple[dict[str, dict[str, list[int]]], dict[str, str], int]:
    """Of each problem's first appearance: its answers with a verdict, by model and text, and its id, by text; and how
    many other appearances there were."""
    columns = answers.columns
    n = len(columns["problem"])
    ids, splits = (columns.get(name, [None] * n) for name in ("id", "split"))
    first: dict[str, tuple[Any, Any]] = {}
    named: dict[tuple[Any, Any], str] = {}
    repeated: set[tuple[str, Any, Any]] = set()
    groups: dict[str, dict[str, list[int]]] = {model: {} for model in answers.models}
    for row, (problem, model) in enumerate(zip(columns["problem"], columns["model"], strict=True)):
        text, name = same_text(problem), (ids[row], splits[row])
        if ids[row] is not None and named.setdefault(name, text) != text:
            raise DataError(
                f"{answers.used['id']} {ids[row]!r} stands for two problems: name another column with --column "
                "id=NAME, or none with --column id=none, and a hash of the text is each problem's id"
            )
        if first.setdefault(text, name) != name:
            repeated.add((text, *name))
        elif columns["correct"][row] is not None:
            groups[model].setdefault(text, []).append(row)
    return groups, _ids(first), len(repeated)


def _ids(named: Mapping[str, tuple[Any, Any]]) -> dict[str, str]:
    """Each problem's id by its text: the data's, with the split where each split counts anew, or else a hash."""
    ids = [id_ for id_, _ in named.values()]
    if None in ids:
        return {text: hashlib.sha256(text.encode()).hexdigest()[:16] for text in named}
    is_unique = len(set(ids)) == len(ids)
    return {text: str(id_) if is_unique else f"{split}-{id_}" for text, (id_, split) in named.items()}


def _row(answers: Answers, indices: Sequence[int], problem_id: str, arm: str, model: str, sampled: Sampled) -> Row:
    columns, first = answers.columns, indices[0]
    indices = indices[: sampled.k]

    def of(role: str) -> list[Any]:
        return [columns[role][index] for index in indices] if role in columns else [None] * len(indices)

    problem = str(columns["problem"][first])
    correct, responses = of("correct"), ["" if text is None else str(text) for text in of("response")]
    rate = sum(correct) / len(correct)
    inputs, outputs = of("input_tokens"), of("output_tokens")
    assumed = assumed_tokens(model, sampled)
    return {
        "problem_id": problem_id,
        "split": split_name(str(of("split")[0] or "")),
        "benchmark": sampled.benchmark,
        "problem": problem,
        "formatted_prompt": "",
        "ground_truth": "" if of("ground_truth")[0] is None else str(of("ground_truth")[0]),
        "arm": arm,
        "model": model,
        "k": len(correct),
        "temperature": sampled.temperature,
        "max_tokens": sampled.max_tokens,
        "seed": 0,
        "generated_solutions": responses,
        "extracted_answers": [None] * len(correct),
        "correct": correct,
        "success_rate": rate,
        "pass_at_k": float(any(correct)),
        "majority_vote_answer": None,
        "majority_vote_is_correct": rate > 0.5,  # no answers to vote on: whether most are right
        "input_tokens": estimate(problem) if inputs[0] is None else int(inputs[0]),
        "output_tokens": [
            int(count) if count is not None else estimate(text) if "response" in columns else assumed
            for count, text in zip(outputs, responses, strict=True)
        ],
        "metadata": json.dumps(answers.metadata[first], ensure_ascii=False) if answers.metadata[first] else None,
    }


def estimate(text: str) -> int:
    return math.ceil(len(text) / CHARACTERS_PER_TOKEN)


def assumed_tokens(model: str, sampled: Sampled) -> int:
    asked = sampled.output_tokens or {}
    return asked.get(model, asked.get("", OUTPUT_TOKENS))


def _told_of_tokens(answers: Answers, sampled: Sampled) -> tuple[str, tuple[str, ...]]:
    has_inputs, has_outputs = (
        None not in answers.columns.get(f"{kind}_tokens", [None]) for kind in ("input", "output")
    )
    if has_inputs and has_outputs:
        return RECORDED, ()
    notes = []
    if not has_inputs:
        notes.append(f"Input tokens are estimated: the problem's characters / {CHARACTERS_PER_TOKEN}.")
    if not has_outputs and "response" in answers.columns:
        notes.append(f"Output tokens are estimated: the response's characters / {CHARACTERS_PER_TOKEN}.")
    elif not has_outputs:
        counts = sorted({assumed_tokens(model, sampled) for model in answers.models})
        notes.append(f"Output tokens are assumed, no responses are on record: {', '.join(map(str, counts))} an answer.")
    return ESTIMATED, tuple(notes)


def complete(converted: Converted, drop: bool) -> Converted:
    """Without the problems that some arm lacks, or answered fewer times than it did others.

    Raises:
        DataError: there are such and they are not to be dropped, or nothing is left.
    """
    k_of = {row["arm"]: 0 for row in converted.rows}
    answered: dict[str, dict[str, int]] = {}
    for row in converted.rows:
        answered.setdefault(same_text(row["problem"]), {})[row["arm"]] = row["k"]
        k_of[row["arm"]] = max(k_of[row["arm"]], row["k"])
    incomplete = {problem for problem, by_arm in answered.items() if by_arm != k_of}
    if incomplete and not drop:
        raise DataError(_says_what_is_missing(answered, k_of, len(incomplete)))
    rows = [row for row in converted.rows if same_text(row["problem"]) not in incomplete]
    if not rows:
        raise DataError(
            "no problem was answered by every model alike: leave some models out, or take fewer answers (--k)"
        )
    return replace(converted, rows=rows, incomplete_dropped=len(incomplete))


def _says_what_is_missing(answered: Mapping[str, Mapping[str, int]], k_of: Mapping[str, int], n: int) -> str:
    counts = {arm: [by_arm[arm] for by_arm in answered.values() if arm in by_arm] for arm in k_of}
    for arm, found in counts.items():
        if len(set(found)) > 1:
            spread = ", ".join(f"{k} to {found.count(k)} problems" for k in sorted(set(found)))
            return (
                f"arm {arm!r} mixes k: answers are {spread}; --k N takes the first N of each, --drop-incomplete leaves "
                "out the problems that have fewer than the most"
            )
    arm = min(counts, key=lambda one: len(counts[one]))
    return (
        f"{n} of {len(answered)} problems lack an arm (such as {arm!r}, which has {len(counts[arm])}): "
        "--drop-incomplete leaves them out"
    )


def splits_of_data(rows: Sequence[Row]) -> list[Row]:
    """The rows as they are.

    Raises:
        DataError: some are in no split, or a problem is in two.
    """
    known: dict[str, str] = {}
    for row in rows:
        if not row["split"]:
            raise DataError("no column holds the split: name it with --column split=NAME, or make splits with --split")
        other = known.setdefault(same_text(row["problem"]), row["split"])
        if other != row["split"]:
            raise DataError(
                f"problem {row['problem_id']!r} is in {other} for one arm and in {row['split']} for another, so that "
                "probes would be measured on what they were fitted on: --split makes new splits for all"
            )
    return list(rows)


def split_anew(rows: Sequence[Row], shares: Mapping[str, float], seed: int) -> list[Row]:
    """Each problem in the split that a hash of its text and the seed says.

    More problems, or others, move none of those that are there.

    Raises:
        DataError: a split stays empty.
    """
    ends = dict(zip(shares, accumulate(shares.values()), strict=True))
    last = list(shares)[-1]
    names = {row["problem"]: "" for row in rows}
    for problem in names:
        digest = hashlib.sha256(f"{seed}:{same_text(problem)}".encode()).digest()
        at = int.from_bytes(digest[:8]) / 2**64
        names[problem] = next((name for name, end in ends.items() if at < end), last)
    empty = [name for name in shares if name not in names.values()]
    if empty:
        raise DataError(
            f"{len(names)} problems leave the split {empty[0]} empty: give it a larger share, or more problems"
        )
    return [{**row, "split": names[row["problem"]]} for row in rows]


def one_sided(rows: Sequence[Row]) -> dict[str, str]:
    """Of each arm whose success rate is the same on a whole split: on which, with the rate."""
    seen: dict[tuple[str, str], set[float]] = {}
    for row in rows:
        seen.setdefault((row["arm"], row["split"]), set()).add(row["success_rate"])
    told: dict[str, list[str]] = {}
    for (arm, split), rates in seen.items():
        if len(rates) == 1:
            told.setdefault(arm, []).append(f"{min(rates):g} on all {split} problems")
    return {arm: f"its success rate is {', '.join(parts)}" for arm, parts in told.items()}
