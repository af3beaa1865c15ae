"""What `pika data convert` made, for people and for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from offline.conversion import Converted, Row
from offline.hub_cli import cell
from offline.training_set import SPLITS


def report(converted: Converted, one_sided: Mapping[str, str], told: Mapping[str, Any]) -> dict[str, Any]:
    """Print it on stderr, and give the same as figures.

    Args:
        one_sided: see `offline.conversion.one_sided`.
        told: `columns` that were taken for each role, and `unused_columns`, where the data had to be guessed at.
    """
    by_arm: dict[str, list[Row]] = {}
    for row in converted.rows:
        by_arm.setdefault(row["arm"], []).append(row)
    counts = Counter(row["split"] for row in next(iter(by_arm.values())))
    splits = {name: counts[name] for name in dict.fromkeys([*SPLITS, *counts]) if name in counts}
    arms = {arm: _figures(rows, splits) for arm, rows in by_arm.items()}
    console = Console(stderr=True)
    for role, column in told.get("columns", {}).items():
        console.print(cell(f"{role:>14}: {column}"))
    if told.get("unused_columns"):
        console.print(cell(f"{'not used':>14}: {', '.join(told['unused_columns'])}"), soft_wrap=True)
    console.print(_table(arms, splits))
    for sentence in _sentences(converted, splits, one_sided):
        console.print(cell(sentence), soft_wrap=True)
    return {
        "rows": len(converted.rows),
        "problems": splits,
        "duplicates_removed": converted.duplicates_removed,
        "incomplete_dropped": converted.incomplete_dropped,
        "tokens": converted.tokens,
        "notes": list(converted.notes),
        "one_sided": dict(one_sided),
        "arms": arms,
    }


def _figures(rows: Sequence[Row], splits: Mapping[str, int]) -> dict[str, Any]:
    answers = sum(row["k"] for row in rows)
    rates = {split: [row["success_rate"] for row in rows if row["split"] == split] for split in splits}
    return {
        "model": rows[0]["model"],
        "k": rows[0]["k"],
        "accuracy": {split: sum(values) / len(values) for split, values in rates.items()},
        "mean_input_tokens": sum(row["input_tokens"] for row in rows) / len(rows),
        "mean_output_tokens": sum(sum(row["output_tokens"]) for row in rows) / answers,
        "mean_cost_usd": sum(row["input_cost_usd_once"] for row in rows) / len(rows)
        + sum(row["total_output_cost_usd"] for row in rows) / answers,
    }


def _table(arms: Mapping[str, Mapping[str, Any]], splits: Mapping[str, int]) -> Table:
    table = Table(box=None, pad_edge=False, title="Share of right answers", title_justify="left")
    for heading in ("arm", *splits, "k", "tokens in", "out", "USD/answer"):
        if heading == "arm":
            table.add_column(heading, overflow="fold")  # gives way in a narrow terminal
        else:
            table.add_column(heading, justify="right", no_wrap=True)
    for arm, figures in arms.items():
        table.add_row(
            cell(arm),
            *(f"{figures['accuracy'][split]:.3f}" for split in splits),
            str(figures["k"]),
            f"{figures['mean_input_tokens']:.0f}",
            f"{figures['mean_output_tokens']:.0f}",
            f"{figures['mean_cost_usd']:.2e}",
        )
    return table


def _sentences(converted: Converted, splits: Mapping[str, int], one_sided: Mapping[str, str]) -> list[str]:
    absent = [name for name in SPLITS if name not in splits]
    return [
        "problems: " + ", ".join(f"{name} {n:,}" for name, n in splits.items()),
        f"left out: {converted.duplicates_removed} that repeat another's text, {converted.incomplete_dropped} that not "
        "all models answered",
        *converted.notes,
        *(
            f"{arm}: {why}, so no probe of it can be trained: name the other arms with `pika train --arms`"
            for arm, why in one_sided.items()
        ),
        *(f"no {name} problems, which `pika train` needs: --split makes new splits" for name in absent),
    ]
