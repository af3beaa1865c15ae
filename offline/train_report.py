"""What `pika train` tells of the probes that it made."""

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from offline.metrics import with_interval
from offline.transfer import Transfer
from probes.card import ProbeCard

WIDTH = 120
"""Columns that the tables need: a narrower terminal wraps them, rather than that figures are cut."""


def report(cards: dict[str, ProbeCard], transfer: Transfer, out: Path) -> None:
    """Tables for people, warnings on stderr, then one JSON object for programs, the last line."""
    console = Console()
    console.width = max(console.width, WIDTH)
    console.print(_probes(cards))
    if transfer:
        console.print(_transfer(cards, transfer))
    for arm, card in cards.items():
        if not card.beats_length:
            print(f"{arm}: the probe is not surely better than the prompt's length alone", file=sys.stderr)
    print(json.dumps({"arms": {arm: _summary(arm, card, transfer, out) for arm, card in cards.items()}}))


def _probes(cards: dict[str, ProbeCard]) -> Table:
    caption = "on test problems [95% interval]; length, TF-IDF: AUROC of text alone"
    table = Table(title="Probes", caption=caption, box=None, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for heading in ("layer", "pos.", "AUROC", "ECE", "length", "TF-IDF"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, card in cards.items():
        site, metrics = card.site, card.metrics[-1]
        table.add_row(
            arm,
            *(("", "") if site is None else (str(site.layer), "all" if site.position is None else str(site.position))),
            with_interval(metrics.auroc),
            with_interval(metrics.ece),
            *(f"{card.baselines[name].auroc.value:.3f}" for name in ("length", "tfidf")),
        )
    return table


def _transfer(cards: dict[str, ProbeCard], transfer: Transfer) -> Table:
    own = next(iter(cards.values())).benchmark
    title = f"Trained on {own}, tested on others' problems"
    table = Table(title=title, caption="[95% interval]", box=None, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    table.add_column("tested on", overflow="fold")
    for heading in ("AUROC", "ECE", "Spearman"):
        table.add_column(heading, justify="right", no_wrap=True)
    for arm, card in cards.items():
        for name, metrics in [(own, card.metrics[-1]), *((name, found[arm]) for name, found in transfer.items())]:
            table.add_row(arm, name, *map(with_interval, (metrics.auroc, metrics.ece, metrics.spearman)))
    return table


def _summary(arm: str, card: ProbeCard, transfer: Transfer, out: Path) -> dict[str, Any]:
    site = card.site
    return {
        "folder": str(out / arm),
        "kind": card.kind,
        "layer": None if site is None else site.layer,
        "position": None if site is None else site.position,
        "alpha": card.best_alpha,
        "calibration": card.calibration.method,
        **{name: getattr(card.metrics[-1], name).value for name in ("auroc", "ece", "brier", "spearman")},
        "validation": card.training["validation"],
        "output_tokens_log_rmse": None if card.output_tokens is None else card.output_tokens.log_rmse,
        "beats_length": card.beats_length,
        "transfer": {
            name: found[arm].model_dump(include={"n", "auroc", "ece", "brier", "spearman"})
            for name, found in transfer.items()
        },
    }
