"""`pika report`: one folder with a page, plots, tables and every figure of what `pika evaluate` found."""

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from offline.evaluate import DataError
from offline.provenance import versions
from offline.report import model
from offline.report.html import html
from offline.report.latex import latex
from offline.report.markdown import markdown
from offline.report.page import Page, page
from offline.report.panels import panels
from offline.report.plots import FORMATS, PANEL, WIDE_PANEL, drawing, frontier_plot, grid, inline, saved
from offline.whole_file import whole

EXAMPLES = """examples:
  pika evaluate pool.yaml --data rollouts.parquet --out evaluation
  pika report evaluation                          report.html and all else in evaluation/report/
  pika report evaluation --out paper/figures

Files in the folder: report.html (open it in a browser; it needs no network), report.md, report.json (every figure
shown), table.tex (needs the package booktabs), results.parquet (per test problem), and frontier, reliability, roc,
mix and knobs as .png, .svg and .pdf, those of them that there are figures for.
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    out: Path = options.out or options.folder / "report"
    try:
        evaluation, results, sha256 = model.read(options.folder)
    except DataError as error:
        print(f"pika report: {error}", file=sys.stderr)
        return 2
    provenance: dict[str, Any] = {
        "command": shlex.join(["pika", "report", *argv]),
        "versions": versions(),
        "inputs": dict(sha256),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the work: nothing is drawn for a folder that cannot be
        files = {model.RESULTS: results, **render(evaluation, provenance)}
        _write(out, files)
    except OSError as error:
        print(f"pika report: cannot write {out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 1
    verdict = evaluation.verdict
    print(f"{verdict.sentence}\n{out / 'report.html'}", file=sys.stderr)
    print(
        json.dumps(
            {
                "out": str(out),
                "beats_controls": verdict.beats_controls,
                "method": verdict.method,
                "sentence": verdict.sentence,
                "files": sorted(files),
            }
        )
    )
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika report",
        description="Write a page, plots and tables of what `pika evaluate` found. The first sentence says whether "
        "routing beats the controls on this data, and by how much.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="what `pika evaluate --out` wrote")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="folder to write (default: DIR/report)")
    return parser


def render(evaluation: model.Evaluation, provenance: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of every file of the report by name, results.parquet aside."""
    small = panels(evaluation)
    said = page(evaluation, {"frontier", *small}, provenance)
    about = f"pika report of {json.dumps(provenance['inputs'])}"
    files: dict[str, bytes] = {}
    drawings: dict[str, list[str]] = {}
    columns = (TextColumn("drawing {task.description}"), BarColumn())
    with drawing(), Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1 + len(small))
        for name in ("frontier", *small):
            progress.update(task, description=name)
            if name == "frontier":
                figure = frontier_plot(said.frontier)
                drawings[name] = [inline(figure, name)]
            else:
                width = WIDE_PANEL if name == "mix" else PANEL
                figure = grid(small[name], width)
                drawings[name] = [inline(grid([draw], width), f"{name} {i}") for i, draw in enumerate(small[name])]
            for form in FORMATS:
                files[f"{name}.{form}"] = saved(figure, form, about)
            progress.advance(task)
    texts = {
        "report.html": html(said, drawings),
        "report.md": markdown(said),
        "table.tex": latex(said.tables, said.sentence, [json.dumps(provenance)]),
        "report.json": json.dumps(_figures(said, evaluation), indent=1) + "\n",
    }
    return files | {name: text.encode() for name, text in texts.items()}


def _figures(said: Page, evaluation: model.Evaluation) -> dict[str, Any]:
    """Every figure that the report shows, as a number and as it is written."""
    arms = [
        {"arm": arm.name, **arm.probe.model_dump(mode="json", include={"reliability", "roc"})}
        for arm in evaluation.arms
        if arm.probe is not None
    ]
    return {
        "schema_version": 1,
        "verdict": evaluation.verdict.model_dump(mode="json"),
        "about": said.about,
        "tables": {table.key: asdict(table) for table in said.tables},
        "frontier": asdict(said.frontier),
        "probes": arms,
        "notes": list(said.notes),
        "provenance": dict(said.provenance),
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Each file whole or not at all.

    Raises:
        OSError: one cannot be written.
    """
    for name, content in files.items():
        with whole(folder / name) as unfinished:
            unfinished.write_bytes(content)
