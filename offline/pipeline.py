"""`pika run`: a whole chain from one file; steps whose inputs did not change are skipped."""

import argparse
import fcntl
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from offline import child
from offline.evaluate import DataError
from offline.pipeline_steps import NEVER_REPLACES, STEPS, Step, read_steps
from offline.provenance import versions
from offline.whole_file import write_whole
from probes.base import ProbeError
from server.config import ConfigError

EXAMPLES = """examples:
  pika run offline/nano_pool/quick/run.yaml --dry-run
  pika run run.yaml
  pika run run.yaml --force train          again, although nothing changed; what depends on it follows
  pika run run.yaml --only tune

run.yaml names the pool and the steps, in order; a step's keys are its command's own options and arguments:

  pool: pool.yaml
  rollouts: {benchmark: running_total, split: [train=300, validation=200, test=200], k: 4, out: rollouts.parquet}
  train: {data: rollouts.parquet, probe-model: nano-medium, kind: mlp, next-token: true, out: probes}
  tune: {data: rollouts.parquet}
  evaluate: {data: rollouts.parquet, out: evaluation}
  report: {folder: evaluation, out: report}

Paths stand against its folder. What was done with which inputs is noted in run.state.json beside it. A run that was
interrupted goes on when the same command is given again.
"""


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    try:
        steps = read_steps(options.file)
        for name in filter(None, [*options.force, options.only]):
            if name not in {step.name for step in steps}:
                raise DataError(f"{options.file} has no step {name!r}; it has {', '.join(step.name for step in steps)}")
        with _state(options.file) as state:
            if options.dry_run:
                return _show(steps, state, options)
            return _run(steps, state, options)
    except (ConfigError, DataError, ProbeError) as error:
        print(f"pika run: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pika run: {error}\nwhat is done is kept; the same command goes on from there", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; what is done is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pika run",
        description="Run a chain of commands from one file, each where its inputs changed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE.yaml", help=f"pool, and steps of {', '.join(STEPS)}")
    parser.add_argument("--dry-run", action="store_true", help="say which steps would run and why, and run nothing")
    parser.add_argument("--force", action="append", default=[], metavar="STEP", help="run it anyway; repeatable")
    parser.add_argument("--only", metavar="STEP", help="this step alone")
    return parser


class State:
    """What was done, by step: `run.state.json`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.done: dict[str, Any] = dict(json.loads(path.read_text())) if path.exists() else {}
        except (ValueError, TypeError) as error:
            raise DataError(f"{path} is damaged ({error}): delete it, and every step runs again") from error

    def reason(self, step: Step) -> str | None:
        """Why a step must run; None: it was done, and neither its inputs nor its outputs changed since."""
        done = self.done.get(step.name)
        if done is None:
            return "not done yet"
        if done.get("finished_at") is None:
            return "was interrupted"
        if done["options"] != step.argvs:
            return "other options"
        if done["versions"] != _versions():
            return "another version"
        inputs, outputs = step.inputs(), step.outputs()
        for path in sorted({*done["inputs"], *inputs}):
            if path not in inputs:
                return f"{path} is gone"
            if done["inputs"].get(path) != inputs[path]:
                return f"{path} {'changed' if path in done['inputs'] else 'is new'}"
        for path, sha256 in done["outputs"].items():  # files beside them are somebody else's
            if outputs.get(path) != sha256:
                return f"{path} {'changed' if path in outputs else 'is gone'}"
        return None

    def begin(self, step: Step) -> None:
        """What stands where this step writes is the chain's from now on."""
        if step.name in NEVER_REPLACES and step.name in self.done:
            for path in step.writes:
                path.unlink(missing_ok=True)
        self._note(step, finished_at=None)

    def finish(self, step: Step, inputs: dict[str, str], seconds: float) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._note(step, finished_at=now, seconds=round(seconds, 1), inputs=inputs, outputs=step.outputs())

    def _note(self, step: Step, **facts: Any) -> None:
        commands = [step.typed(argv) for argv in step.argvs]
        self.done[step.name] = {"command": commands, "options": step.argvs, "versions": _versions(), **facts}
        write_whole(self.path, json.dumps(self.done, indent=1) + "\n")


def _versions() -> dict[str, str]:
    return dict(versions(("pika-router",)))


@contextmanager
def _state(file: Path) -> Iterator[State]:
    with file.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"another run of {file} is on: wait for it") from None
        yield State(file.with_suffix(".state.json"))


def _reason(step: Step, state: State, options: argparse.Namespace) -> str | None:
    if options.only not in (None, step.name):
        return None
    return "--force" if step.name in options.force else state.reason(step)


def _run(steps: list[Step], state: State, options: argparse.Namespace) -> int:
    ran, skipped = [], []
    for step in steps:
        reason = _reason(step, state, options)
        if reason is None:
            skipped.append(step.name)
            continue
        state.begin(step)
        inputs, started = step.inputs(), time.monotonic()
        for argv in step.argvs:
            print(f"pika run: {step.name} ({reason})\n  {step.typed(argv)}", file=sys.stderr, flush=True)
            words = child.command([*step.name.split(), *argv])
            # All that it says goes to stderr: the last line on stdout is to be ours.
            code = subprocess.run(words, cwd=step.folder, env=child.environment(), stdout=2).returncode
            if code != 0:
                print(
                    f"pika run: {step.name} failed with exit code {code}; by hand, in {step.folder}:\n"
                    f"  {step.typed(argv)}",
                    file=sys.stderr,
                )
                return code if code > 0 else 1
        state.finish(step, inputs, time.monotonic() - started)
        ran.append(step.name)
    print(json.dumps({"file": str(options.file), "ran": ran, "skipped": skipped, "state": str(state.path)}))
    return 0


def _show(steps: list[Step], state: State, options: argparse.Namespace) -> int:
    table = Table("step", "", "why", "command", box=None, header_style="bold")
    new: set[Path] = set()
    would_run = []
    for step in steps:
        reason = _reason(step, state, options)
        if reason is None and options.only in (None, step.name):
            reason = next((f"{path.name} will be new" for path in sorted(new) if step.reads(path)), None)
        if reason is not None:
            new |= step.writes
            would_run.append(step.name)
        commands = "\n".join(step.typed(argv) for argv in step.argvs)
        table.add_row(step.name, "skip" if reason is None else "run", reason or "", commands)
    Console(stderr=True).print(table)
    print(json.dumps({"file": str(options.file), "would_run": would_run}))
    return 0
