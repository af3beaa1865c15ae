"""What a sweep trains, from its YAML file: options of `pika train`, where a list means each of its values in turn.

pool: pool.yaml
out: sweep
data: [math.parquet, gsm8k.parquet]
probe-model: [nano-small, nano-medium]
kind: [linear_eoi, mlp, tfidf]
next-token: [false, true]
seed: [0, 1, 2]
test-on: [math.parquet, gsm8k.parquet]

Lists of arms, layers and positions mean all of them together. Each cell is tested on all files of `test-on` but the one
that it is trained on. Options that a kind of probe has no use for are left out, and cells that then are the same are
one. Paths stand against the file's folder.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from offline.evaluate import DataError
from offline.options import FORM, actions, to_argv, unknown
from offline.probe_card import LIBRARIES
from offline.provenance import sha256, versions
from offline.train_options import train_parser
from probes.base import load as load_kind
from probes.fingerprint import fingerprint
from server.config import read_yaml

OWN = ("pool", "out")
TOGETHER = ("arms", "layers", "positions", "test-on")
"""Options of which a list is one value."""
USELESS = {
    "text": ("probe-model", "layers", "positions", "next-token", "dtype"),
    "length": ("layers", "positions", "next-token"),
    "site": (),
    "sequence": ("positions", "next-token"),
}
"""Options of which a probe that reads this makes nothing."""


@dataclass(frozen=True)
class Cell:
    """One training run."""

    id: str
    """Of its options, its inputs' content and the versions of what it runs with: other ones are another cell."""
    options: dict[str, Any]
    argv: list[str]
    """For `pika train`, run in the file's folder."""

    @property
    def data(self) -> str:
        return Path(str(self.options["data"])).stem


@dataclass(frozen=True)
class Plan:
    file: Path
    folder: Path
    """Where paths stand."""
    out: Path
    axes: tuple[str, ...]
    """Options of which there are several values."""
    cells: tuple[Cell, ...]

    def cell_folder(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.id


def read_plan(file: Path) -> Plan:
    """
    Raises:
        ConfigError: the file cannot be read.
        DataError: it lacks a key, or has one that `pika train` has not; names it.
        SystemExit: a value is none of its option's.
    """
    options = read_yaml(file, FORM)
    options = {key.replace("_", "-"): value for key, value in options.items()}
    for key in (*OWN, "data"):
        if not options.get(key):
            raise DataError(f"{file} must say {key}: it is missing")
    parser = train_parser()
    known = actions(parser)
    lists = {}
    for key, value in options.items():
        if key in OWN:
            continue
        if key not in known or known[key].dest in ("config", "options", "out"):
            raise DataError(f"{file}: {unknown(key, {**known, 'pool': None})}")
        lists[key] = value if isinstance(value, list) and key not in TOGETHER else [value]
    folder, out = file.resolve().parent, Path(str(options["out"]))
    cells: dict[str, Cell] = {}
    for values in product(*lists.values()):
        chosen = _useful(dict(zip(lists, values, strict=True)))
        id_ = _id(folder, str(options["pool"]), chosen)
        where = {"config": options["pool"], "out": str(out / "cells" / id_ / "probes")}
        argv = to_argv(parser, {**where, **chosen}, str(file))
        parser.parse_args(argv)
        cells.setdefault(id_, Cell(id_, chosen, argv))
    axes = tuple(key for key, values in lists.items() if len(values) > 1)
    return Plan(file, folder, folder / out, axes, tuple(cells.values()))


def _useful(options: dict[str, Any]) -> dict[str, Any]:
    """
    Raises:
        ProbeError: no such kind of probe.
    """
    kind = load_kind(str(options.get("kind", options.get("probe", "linear_eoi"))))
    useless = {*USELESS[kind.reads], *(() if kind.kind == "mlp" else ("next-token",))}
    kept = {key: value for key, value in options.items() if key not in useless}
    if "test-on" in kept:
        named = kept["test-on"] if isinstance(kept["test-on"], list) else [kept["test-on"]]
        kept["test-on"] = [file for file in named if file != kept["data"]]
    return kept


def _id(folder: Path, pool: str, options: dict[str, Any]) -> str:
    tests: Sequence[Any] = options.get("test-on", ())
    files = {str(name): _content(folder / str(name)) for name in (pool, options["data"], *tests)}
    model = options.get("probe-model")
    weights = fingerprint(folder / str(model)) if model is not None and (folder / str(model)).is_dir() else None
    facts = [options, files, weights, dict(versions(("pika-router", *LIBRARIES)))]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _content(path: Path) -> str | None:
    """None for a dataset on the Hub."""
    return sha256(path) if path.is_file() else None
