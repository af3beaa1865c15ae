"""What `pika rollouts` prints of finished rollouts."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console
from rich.table import Table

from offline.left_out_tests import left_out


def report(table: pa.Table, out: Path) -> None:
    """A table for people on stderr, one JSON object for programs on stdout."""
    arms = {}
    shown = Table(box=None, pad_edge=False)
    for heading in ("arm", "problems", "accuracy", "majority", "pass@k", "tokens", "cut off", "USD/answer"):
        shown.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    for arm in dict.fromkeys(table["arm"].to_pylist()):
        rows = table.filter(pc.equal(table["arm"], arm))
        output_tokens = pc.list_flatten(rows["output_tokens"])
        figures = {
            "problems": len(rows),
            "accuracy": _mean(rows["success_rate"]),
            "majority_vote_accuracy": _mean(rows["majority_vote_is_correct"]),
            "pass_at_k": _mean(rows["pass_at_k"]),
            "mean_input_tokens": _mean(rows["input_tokens"]),
            "mean_output_tokens": _mean(output_tokens),
            "cut_off": pc.mean(pc.list_flatten(rows["truncated"])).as_py(),
            "mean_cost_usd": _mean(rows["input_cost_usd_once"])
            + pc.sum(rows["total_output_cost_usd"]).as_py() / len(output_tokens),
        }
        arms[arm] = figures
        shown.add_row(
            arm,
            str(figures["problems"]),
            *(f"{figures[name]:.3f}" for name in ("accuracy", "majority_vote_accuracy", "pass_at_k")),
            f"{figures['mean_output_tokens']:.1f}",
            "" if figures["cut_off"] is None else f"{figures['cut_off']:.2%}",
            f"{figures['mean_cost_usd']:.3g}",
        )
    console = Console(stderr=True)
    console.print(shown)
    split, problem_id, metadata = (table[name].to_pylist() for name in ("split", "problem_id", "metadata"))
    once = dict(zip(zip(split, problem_id, strict=True), metadata, strict=True))
    lacking = left_out(once.values())
    if lacking.tests:
        console.print(lacking.sentence, highlight=False)
    print(json.dumps({"out": str(out), "rows": len(table), "arms": arms, "tests_left_out": lacking.tests}))


def _mean(values: Any) -> float:
    return float(pc.mean(values).as_py())
