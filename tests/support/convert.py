"""Other people's results as tables, and `pika data convert` of them."""

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from server.__main__ import main

MODELS = ("owner/small-1b", "owner/large-70b")
PRICES = ("--price", "owner/small-1b=0.1/0.2", "--price", "owner/large-70b=1/4")


def answers(n: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """A long table: easy problems are solved by both models, hard ones by the large one, mostly."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        hard = number % 2 == 1
        problem = f"{'Prove the lemma' if hard else 'Add the numbers'} of exercise {number}."
        for model in MODELS:
            p = 0.95 if not hard else 0.8 if "large" in model else 0.1
            rows.append(
                {
                    "idx": number,
                    "topic": "proof" if hard else "sum",
                    "problem": problem,
                    "ground_truth": str(number),
                    "model": model,
                    "response": "It is " + "so " * (number % 5),
                    "is_correct": rng.random() < p,
                }
            )
    return rows


def write(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    table = pa.Table.from_pylist(list(rows))
    match file.suffix:
        case ".parquet":
            pq.write_table(table, file)
        case ".csv":
            pa.csv.write_csv(table, file)
        case ".json":
            file.write_text(json.dumps(list(rows)))
        case ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run(capsys: pytest.CaptureFixture[str], *arguments: object, command: str = "data") -> tuple[dict[str, Any], str]:
    """The summary, and what people were told."""
    capsys.readouterr()
    words = [command, *(["convert"] if command == "data" else []), *map(str, arguments)]
    code = main(words)
    out, err = capsys.readouterr()
    assert code == 0, err
    summary: dict[str, Any] = json.loads(out.splitlines()[-1])
    return summary, err


def fails(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert main(["data", "convert", *map(str, arguments)]) == 2
    err = capsys.readouterr().err
    assert "pika data convert: " in err
    return err
