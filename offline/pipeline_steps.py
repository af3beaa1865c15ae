"""The steps that `pika run` knows, and what each reads and writes."""

import os
import shlex
from argparse import ArgumentParser
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from offline.evaluate import DataError
from offline.options import FORM, actions, to_argv, unknown
from offline.provenance import sha256
from server.config import HUB, load, read_yaml

STEPS = {
    "data convert": "offline.data_convert:_parser",
    "rollouts": "offline.rollouts:_parser",
    "train": "offline.train_options:train_parser",
    "sweep": "offline.sweep:_parser",
    "tune": "offline.tune:_parser",
    "evaluate": "offline.evaluation.command:_parser",
    "report": "offline.report.command:_parser",
    "probes push": "offline.push_command:_parser",
}
"""Commands as they are typed, and what makes their parsers."""
READ_PROBES = ("tune", "evaluate")
"""Commands that read the probes that the pool names."""
WRITES = {"data convert": ("out", "pool")}
"""Options that name what a command writes, where it is not `out` alone."""
NEVER_REPLACES = ("data convert",)
"""Commands that refuse to write where something stands."""


@dataclass(frozen=True)
class Step:
    name: str
    folder: Path
    """Where paths stand, and the command runs."""
    argvs: list[list[str]]
    """Of its command, which runs once for each."""
    named: frozenset[str]
    """Values that may name something that is read."""
    writes: frozenset[Path]
    pool: Path

    @property
    def probes(self) -> set[Path]:
        """Folders of the pool's probes, if it reads them."""
        if self.name not in READ_PROBES or not self.pool.exists():
            return set()
        return {Path(one).resolve() for one in load(self.pool).probes.values() if not one.startswith(HUB)}

    def typed(self, argv: list[str]) -> str:
        return shlex.join(["pika", *self.name.split(), *argv])

    def reads(self, path: Path) -> bool:
        """Whether it, or a part of it, is an input."""
        wanted = {(self.folder / name).resolve() for name in self.named} | self.probes
        return any(path == one or path in one.parents or one in path.parents for one in wanted)

    def inputs(self) -> dict[str, str]:
        """SHA-256 of each file that it reads, by path, as far as they are there."""
        return self._files({*((self.folder / name).resolve() for name in self.named), *self.probes}, self.writes)

    def outputs(self) -> dict[str, str]:
        return self._files(self.writes)

    def _files(self, paths: Iterable[Path], without: Iterable[Path] = ()) -> dict[str, str]:
        found = {file for path in paths for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file()}
        kept = sorted(file for file in found if not any(path in (file, *file.parents) for path in without))
        return {os.path.relpath(file, self.folder): sha256(file) for file in kept}


def read_steps(file: Path) -> list[Step]:
    """
    Raises:
        DataError: the file names an unknown step or option.
        ConfigError: the file or the pool cannot be read.
        SystemExit: a value is none of its option's.
    """
    chain = read_yaml(file, "of steps and their options, beside pool")
    folder = file.resolve().parent
    pool = chain.pop("pool", None)
    if not isinstance(pool, str):
        raise DataError(f"{file} must say pool: the YAML file of the pool")
    if not chain:
        raise DataError(f"{file} names no step: choose of {', '.join(STEPS)}")
    for name, options in chain.items():
        if name not in STEPS:
            raise DataError(f"{file}: {unknown(name, {**STEPS, 'pool': None})}")
        if not isinstance(options, dict):
            raise DataError(f"{file}: {name} must be a mapping of its options, such as {{out: FILE}}")
    if not any("pool" in WRITES.get(name, ()) for name in chain):
        load(folder / pool)
    return [_step(f"{file}: {name}", name, options, pool, folder) for name, options in chain.items()]


def _step(where: str, name: str, options: dict[str, Any], pool: str, folder: Path) -> Step:
    module, _, function = STEPS[name].partition(":")
    parser: ArgumentParser = getattr(import_module(module), function)()
    if "options" in options:
        raise DataError(f"{where}: write the options here, in place of a file of them")
    takes_pool = "config" in actions(parser)
    given = {**({"config": pool} if takes_pool else {}), **options}
    argvs = [to_argv(parser, one, where) for one in _each(parser, given)]
    parsed = [parser.parse_args(argv) for argv in argvs]
    options_written = WRITES.get(name, ("out",))
    outs = [getattr(one, option, None) for one in parsed for option in options_written]
    written = {folder / out for out in outs if out is not None}
    named = set(_texts([value for key, value in given.items() if key not in (*options_written, "cache")]))
    if name == "tune" and not written and (folder / pool).exists():
        settings = load(folder / pool)
        written.add(settings.resolve(settings.policy.tuned or "policy.tuned.json"))
    if name == "report" and not written:
        written = {folder / one.folder / "report" for one in parsed}
    if name == "sweep":
        sweep = (folder / parsed[0].file).resolve()
        inner = read_yaml(sweep, FORM)
        written.add(sweep.parent / str(inner.pop("out", "")))
        named.update(str(sweep.parent / text) for text in _texts([*inner.values()]))
    return Step(
        name, folder, argvs, frozenset(named), frozenset(path.resolve() for path in written), (folder / pool).resolve()
    )


def _each(parser: ArgumentParser, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same options once for each value of a positional argument that was given a list."""
    known = actions(parser)
    for key, value in options.items():
        if isinstance(value, list) and key in known and not known[key].option_strings and known[key].nargs is None:
            for one in value:
                yield {**options, key: one}
            return
    yield options


def _texts(values: list[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, list):
            yield from _texts(value)
        elif isinstance(value, str):
            yield value
