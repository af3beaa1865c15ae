"""What a sweep found: a row per cell and arm, and per data set and arm the winner on validation problems."""

import csv
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from offline.probe_card import relative_pass
from offline.sweep_plan import Cell, Plan
from offline.whole_file import whole
from probes.artifact import load_artifact, save_artifact
from probes.card import Estimate, Metrics

Row = dict[str, Any]
FIGURES = ("auroc", "ece", "brier", "spearman")


def rows_of(cell: Cell, folder: Path) -> list[Row]:
    """One per arm, from the cards of the probes that the cell trained."""
    rows = []
    for probe in sorted((folder / "probes").glob("[!.]*")):
        card = load_artifact(probe, verify=False).card
        metrics = card.metrics[-1]
        rows.append(
            {
                "cell": cell.id,
                "data_name": cell.data,
                "arm": card.target.arm,
                **cell.options,
                **{f"validation_{name}": value for name, value in card.training["validation"].items()},
                **_figures("test", metrics),
                "length_auroc": card.baselines["length"].auroc.value,
                "tfidf_auroc": card.baselines["tfidf"].auroc.value,
                "transfer": {one.split.removeprefix("test of "): _figures("test", one) for one in card.metrics[:-1]},
            }
        )
    return rows


def _figures(prefix: str, metrics: Metrics) -> Row:
    found: Row = {}
    for name in FIGURES:
        estimate: Estimate = getattr(metrics, name)
        found |= {f"{prefix}_{name}": estimate.value}
        found |= {f"{prefix}_{name}_low": estimate.low, f"{prefix}_{name}_high": estimate.high}
    return found


def choose(rows: Sequence[Row], axes: Sequence[str]) -> list[Row]:
    """Per data set and arm the row of the options with the best mean validation AUROC over seeds; of these, the seed.

    Test figures have no say.
    """
    best: dict[tuple[str, str], list[Row]] = {}
    for (data, arm, *_), seeds in by_setting(rows, axes).items():
        there = best.setdefault((data, arm), seeds)
        if _mean(seeds, "validation_auroc") > _mean(there, "validation_auroc"):
            best[data, arm] = seeds
    return [max(seeds, key=lambda row: float(row["validation_auroc"])) for seeds in best.values()]


def by_setting(rows: Sequence[Row], axes: Sequence[str]) -> dict[tuple[str, ...], list[Row]]:
    """Rows that differ in the seed alone, by data set, arm and what else distinguishes them."""
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["data_name"], row["arm"], *(str(row.get(axis, "")) for axis in _distinguishing(axes))].append(row)
    return groups


def _distinguishing(axes: Sequence[str]) -> list[str]:
    return [axis for axis in axes if axis not in ("data", "dataset", "seed")]


def _mean(rows: Sequence[Row], name: str) -> float:
    return statistics.mean(float(row[name]) for row in rows)


def keep_winners(plan: Plan, winners: Sequence[Row]) -> list[Path]:
    """Copies of their probes, by data set and arm, so that a pool can name them."""
    folders = []
    for row in winners:
        folder = plan.out / "best" / row["data_name"] / row["arm"]
        artifact = load_artifact(plan.out / "cells" / row["cell"] / "probes" / row["arm"], verify=False)
        pass_ = None if artifact.pass_ is None else relative_pass(artifact.pass_, folder)
        save_artifact(folder, artifact.card.model_copy(update={"pass_": pass_}), artifact.probe, artifact.beside)
        folders.append(folder)
    return folders


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """A row per cell, arm and test set: `tested_on` is empty for the data set's own test problems."""
    flat = []
    for row in rows:
        own = {"tested_on": "", **{key: value for key, value in row.items() if key not in ("transfer", "test-on")}}
        flat += [own, *({**own, "tested_on": name, **found} for name, found in row["transfer"].items())]
    with whole(file) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, list(dict.fromkeys(key for row in flat for key in row)))
        writer.writeheader()
        writer.writerows(flat)


def show(rows: Sequence[Row], winners: Sequence[Row], axes: Sequence[str]) -> None:
    """A table of all settings, winners in green; where probes were tested on others' problems, train x test."""
    caption = "means over seeds; the best on validation is chosen, its test figure [95% interval] has no say"
    table = Table(title="Sweep", caption=caption, box=None, header_style="bold", padding=(0, 1, 0, 0))
    for heading in ("data", "arm", *_distinguishing(axes)):
        table.add_column(heading, overflow="fold")
    for heading in ("validation AUROC", "test AUROC", "test ECE"):
        table.add_column(heading, justify="right")
    ordered = sorted(by_setting(rows, axes).items(), key=lambda one: (one[0][:2], -_mean(one[1], "validation_auroc")))
    for setting, seeds in ordered:
        winner = next((row for row in winners if row in seeds), None)
        table.add_row(
            *setting,
            f"{_mean(seeds, 'validation_auroc'):.3f}",
            f"{_mean(seeds, 'test_auroc'):.3f}" if winner is None else _interval(winner, "test_auroc"),
            f"{_mean(seeds, 'test_ece'):.3f}",
            style="bold green" if winner else None,
        )
    Console().print(table)
    if any(row["transfer"] for row in winners):
        Console().print(_transfer(winners))


def _transfer(winners: Sequence[Row]) -> Table:
    names = list(dict.fromkeys([row["data_name"] for row in winners] + [n for row in winners for n in row["transfer"]]))
    title = "Winners on others' test problems: AUROC"
    table = Table("arm", "trained on \\ tested on", *names, title=title, box=None, header_style="bold")
    for row in sorted(winners, key=lambda row: (row["arm"], row["data_name"])):
        found = {row["data_name"]: row, **row["transfer"]}
        cells = (_interval(found[name], "test_auroc") if name in found else "" for name in names)
        table.add_row(row["arm"], row["data_name"], *cells)
    return table


def _interval(row: Row, name: str) -> str:
    return f"{row[name]:.3f} [{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
