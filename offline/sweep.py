"""`pika sweep`: train many probes side by side; the best is chosen on validation problems."""

import argparse
import fcntl
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from offline.child import end_with
from offline.evaluate import DataError
from offline.options import positive
from offline.progress import bars
from offline.provenance import provenance
from offline.sweep_plan import Cell, Plan, read_plan
from offline.whole_file import write_whole
from probes.base import ProbeError
from server.config import ConfigError

EXAMPLES = """examples:
  pika sweep sweep.yaml --dry-run
  pika sweep sweep.yaml --workers 4

sweep.yaml holds options of `pika train`, a list where several values are to be tried:

  pool: pool.yaml
  out: sweep
  data: [math.parquet, gsm8k.parquet]
  probe-model: nano-medium
  kind: [linear_eoi, mlp, tfidf]
  seed: [0, 1, 2]
  test-on: [math.parquet, gsm8k.parquet]     # each is tested on the others too

Paths stand against its folder. A sweep that was interrupted goes on when the same command is given again; cells that
are done are trained anew only where their options, data, probe model or library versions changed. The winners' probes
stand in OUT/best/DATA/ARM, all figures in OUT/sweep.json and OUT/sweep.csv.
"""
RESULT = "result.json"
FORKS = multiprocessing.get_context("forkserver")


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        plan = read_plan(options.file)
        todo = [cell for cell in plan.cells if not (plan.cell_folder(cell) / RESULT).is_file()]
        if options.dry_run:
            return _show_plan(plan, todo)
        plan.out.mkdir(parents=True, exist_ok=True)
        with _alone(plan.out):
            failed = _run(plan, todo, options.workers)
            return _finish(plan, failed, argv)
    except (ConfigError, DataError, ProbeError) as error:
        print(f"pika sweep: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pika sweep: {error}\nwhat is done is kept; the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika sweep",
        description="Train probes over models, data sets, kinds, options and seeds; choose on validation problems.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="SWEEP.yaml", help="what to train")
    workers = max(1, len(os.sched_getaffinity(0)) // 2)
    parser.add_argument(
        "--workers", type=positive, default=workers, metavar="N", help=f"processes at a time (default: {workers})"
    )
    parser.add_argument("--dry-run", action="store_true", help="list what would be trained, and train nothing")
    return parser


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another sweep is writing {out}: wait for it, or give another out") from None
        yield


def _run(plan: Plan, todo: Sequence[Cell], workers: int) -> dict[str, str]:
    """Train all cells; of those that fail, the last words by id."""
    if not todo:
        return {}
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // workers)))
    reads_model = any("probe-model" in cell.options for cell in todo)
    # What takes long to load is loaded once.
    FORKS.set_forkserver_preload(["offline.train", "offline.activations" if reads_model else "offline.fit"])
    running: set[BaseProcess] = set()
    failed: dict[str, str] = {}
    with (
        bars(MofNCompleteColumn(), TimeElapsedColumn(), "left", TimeRemainingColumn()) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        task = progress.add_task("cells", total=len(plan.cells), completed=len(plan.cells) - len(todo))
        futures = {pool.submit(_run_cell, plan, cell, running): cell for cell in todo}
        try:
            for future in as_completed(futures):
                if (words := future.result()) is not None:
                    failed[futures[future].id] = words
                progress.advance(task)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):
                process.kill()
            raise
    return failed


def _run_cell(plan: Plan, cell: Cell, running: set[BaseProcess]) -> str | None:
    """In a process of its own; the last words of one that failed."""
    folder = plan.cell_folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    process = FORKS.Process(target=_train, args=(os.getpid(), plan.folder, cell.argv, folder / "log.txt"))
    running.add(process)
    process.start()
    process.join()
    running.discard(process)
    if process.exitcode != 0:
        said = (folder / "log.txt").read_text(errors="replace").split("\n") if (process.exitcode or 0) > 0 else []
        return next((line for line in reversed(said) if line.strip()), f"exit code {process.exitcode}")
    result = {"options": cell.options, "seconds": round(time.monotonic() - started, 1)}
    write_whole(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return None


def _train(sweep: int, folder: Path, argv: list[str], log: Path) -> None:
    """What a cell's process does."""
    end_with(sweep)
    with log.open("w") as opened:
        for stream in (1, 2):
            os.dup2(opened.fileno(), stream)
    from offline.train import main as train

    os.chdir(folder)
    sys.exit(train(argv))


def _finish(plan: Plan, failed: dict[str, str], argv: Sequence[str]) -> int:
    from offline.sweep_results import choose, keep_winners, rows_of, show, write_csv

    done = [cell for cell in plan.cells if cell.id not in failed]
    rows = [row for cell in done for row in rows_of(cell, plan.cell_folder(cell))]
    winners = choose(rows, plan.axes)
    folders = keep_winners(plan, winners)
    write_csv(plan.out / "sweep.csv", rows)
    files = [plan.file, *{plan.folder / str(cell.options["data"]) for cell in plan.cells}]
    result: dict[str, Any] = {
        "provenance": provenance("sweep", argv, None, [file for file in files if file.is_file()]),
        "cells": {cell.id: cell.options for cell in plan.cells},
        "failed": failed,
        "rows": rows,
        "winners": [{**row, "folder": str(folder)} for row, folder in zip(winners, folders, strict=True)],
    }
    write_whole(plan.out / "sweep.json", json.dumps(result, indent=1) + "\n")
    show(rows, winners, plan.axes)
    for id_, words in failed.items():
        print(f"{plan.out / 'cells' / id_} failed: {words}", file=sys.stderr)
    named = ("data_name", "arm", "cell", "validation_auroc", "test_auroc", "folder")
    summary = {
        "file": str(plan.out / "sweep.json"),
        "cells": len(plan.cells),
        "failed": failed,
        "winners": [{name: row[name] for name in named} for row in result["winners"]],
    }
    print(json.dumps(summary))
    return 1 if failed else 0


def _show_plan(plan: Plan, todo: Sequence[Cell]) -> int:
    table = Table("cell", *plan.axes, "", box=None, header_style="bold")
    for cell in plan.cells:
        values = (str(cell.options.get(axis, "")) for axis in plan.axes)
        table.add_row(cell.id, *values, "to do" if cell in todo else "done")
    Console(stderr=True).print(table)
    print(json.dumps({"cells": len(plan.cells), "to_do": [cell.id for cell in todo]}))
    return 0
