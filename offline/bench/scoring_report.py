"""What `pika bench scoring` found, as a table and as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from rich.box import SIMPLE
from rich.console import Group
from rich.table import Table

from offline.report.plots import drawing
from probes.base import FloatArray

if TYPE_CHECKING:
    from offline.bench.scoring import Measured


def table(measured: "Measured") -> Group:
    """Ways to read the same prompts; then the engine under load."""
    ways = Table(title=f"{measured.tokens:,} tokens, one probe")
    for column in ("way", "CPU s", "wall s", "ratio to engine"):
        ways.add_column(column, justify="left" if column == "way" else "right")
    for name, cost in (
        ("research code: all layers, LM head, padded", measured.reference),
        ("plain Transformers, cut, batch 1", measured.plain),
        ("the same, batches of 16 by length", measured.batched),
        ("this engine, messages included", measured.engine),
        ("bare matrix products", measured.floor),
    ):
        ratio = cost.seconds / measured.engine.seconds
        ways.add_row(name, f"{cost.cpu_s:.2f}", f"{cost.wall_s:.2f}", f"{ratio:.2f}")
    load = Table(title="under load: capacity and answers per second; ms", box=SIMPLE, padding=0)
    for column in (
        "load", "capacity", "answers", "p50", "p95", "p99", "ideal p99", "refused", "p99", "batch", "CPU s", "wall s",
    ):  # fmt: skip
        load.add_column(column, justify="right")
    for point in measured.points:
        asked = len(point.refused_s) + len(point.latency_s)
        row = [f"{point.share:.0%}", f"{point.capacity:.1f}", f"{point.achieved:.1f}"]
        row += [_ms(point.latency_s, percentile) for percentile in (50, 95, 99)] + [_ms(point.ideal_s, 99)]
        row += [f"{len(point.refused_s) / asked:.0%}", _ms(point.refused_s, 99) if len(point.refused_s) else ""]
        load.add_row(*row, f"{point.batch_prompts:.1f}", f"{point.cpu_s:.1f}", f"{point.wall_s:.1f}")
    p50, p99 = np.percentile(1000 * measured.health_s, (50, 99))
    return Group(ways, load, f"/health of a gateway whose engine is saturated: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


def _ms(seconds: FloatArray, percentile: float) -> str:
    return f"{1000 * np.percentile(seconds, percentile):.1f}"


def plot(measured: "Measured", file: Path) -> None:
    """Cost of each way on the left, latency by offered load on the right."""
    with drawing():
        figure = Figure(figsize=(8, 3), layout="constrained")
        ways, load = figure.subplots(1, 2)
        names = ("research code", "Transformers, cut", "in batches", "this engine", "bare products")
        ways_measured = (measured.reference, measured.plain, measured.batched, measured.engine, measured.floor)
        costs = [one.seconds for one in ways_measured]
        ways.barh(names, costs, height=0.5)
        ways.invert_yaxis()
        ways.set_xlabel(f"{'seconds' if measured.engine.on_gpu else 'CPU seconds'} for {measured.tokens:,} tokens")
        offered = [100 * point.share for point in measured.points]
        for percentile, style in ((50, ":"), (95, "--"), (99, "-")):
            found = [1000 * np.percentile(point.latency_s, percentile) for point in measured.points]
            load.plot(offered, found, style, color="C0", label=f"p{percentile}")
        ideal = [1000 * np.percentile(point.ideal_s, 99) for point in measured.points]
        load.plot(offered, ideal, "-", color="C1", label="p99, ideal queue without bound")
        load.set_yscale("log")
        load.set_xlabel("offered load, % of capacity")
        load.set_ylabel("latency, ms")
        load.legend(frameon=False)
        figure.savefig(file, format="png", dpi=160)
