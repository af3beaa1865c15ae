"""The file of users' keys: YAML, a name over what its key may do. It holds no key, only their SHA-256.

team-a:
  sha256: "3f0c..."
  created: "2026-01-31T12:00:00Z"
  arms: ["small", "large"]          # default: all
  policies: ["utility", "cascade"]  # what requests may ask for beside the policy that they get unasked; default: all
  routing: {"lambda": 0.2}          # knobs where a request sets none; they win over the configuration's
  requests_per_minute: 600
  tokens_per_minute: 100000         # prompt and answer
  usd_per_day: 5                    # by UTC
  usd_per_month: 50

`pika keys` writes it; whatever else stands in it, comments too, stays as it is.
"""

import difflib
import fcntl
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from server.config import NAME, ConfigError
from server.sections.base import Section

MAX_KEYS = 10_000
MAX_BYTES = 8 * 1024 * 1024
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: thousands of keys take seconds otherwise."""


Period = Literal["day", "month"]


class Entry(Section):
    """One key."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the key, in hexadecimal."""
    created: datetime | None = None
    arms: list[str] | None = Field(default=None, min_length=1)
    policies: list[str] | None = None
    routing: dict[str, Any] = Field(default={})
    requests_per_minute: int | None = Field(default=None, gt=0, le=10**9)
    tokens_per_minute: int | None = Field(default=None, gt=0, le=10**12)
    usd_per_day: float | None = Field(default=None, gt=0, le=1e6)
    usd_per_month: float | None = Field(default=None, gt=0, le=1e6)

    @property
    def budgets_usd(self) -> dict[Period, float]:
        budgets: dict[Period, float | None] = {"day": self.usd_per_day, "month": self.usd_per_month}
        return {period: usd for period, usd in budgets.items() if usd is not None}


@dataclass(frozen=True)
class Located:
    """An entry, and where it stands."""

    entry: Entry
    file: Path
    lines: Mapping[str, int]
    """Of its fields, counted from 1; of its name under ""."""

    def error(self, field: str, message: str) -> ConfigError:
        """What is wrong with a field, for people."""
        return ConfigError(f"{self.file}:{self.lines.get(field, self.lines[''])}: {field} {message}")


def read_keys(file: Path) -> dict[str, Located]:
    """The keys by name.

    Raises:
        ConfigError: the file cannot be read, or something in it is wrong; names the line.
    """
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{file} has more than {MAX_BYTES} bytes")
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"keys.file: there is no {file}; `pika keys add NAME --file {file}` makes it") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"keys.file: cannot read {file}: {error}") from error
    return parse_keys(text, file)


def _loaded(text: str) -> Any:
    """As `yaml.safe_load`, which knows the slow loader alone."""
    loader = LOADER(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def parse_keys(text: str, file: Path) -> dict[str, Located]:
    """
    Args:
        file: for errors.

    Raises:
        ConfigError: something is wrong; names the line.
    """
    try:
        root = yaml.compose(text, Loader=LOADER)
        # The text itself is never quoted: somebody may have put a key there.
        found = _loaded(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        raise ConfigError(f"{file}:{line}: not valid YAML: {error.problem}") from None
    except Exception as error:  # PyYAML lets through what a value raises: the date 2024-99-99, say, or deep nesting
        raise ConfigError(f"{file}: not valid YAML: {type(error).__name__}") from None
    if found is None:
        return {}
    if not isinstance(found, dict) or not isinstance(root, yaml.MappingNode):
        raise ConfigError(f"{file} must be a mapping of names to keys; `pika keys add NAME` writes it")
    if len(root.value) > MAX_KEYS:
        raise ConfigError(f"{file} has more than {MAX_KEYS} keys")
    keys: dict[str, Located] = {}
    hashes: dict[str, str] = {}
    for name_node, node in root.value:
        line = name_node.start_mark.line + 1
        name = str(name_node.value)
        if not NAME.fullmatch(name):
            raise ConfigError(f"{file}:{line}: names of keys have up to 64 letters, digits, '.', '_' and '-'")
        if name in keys:
            raise ConfigError(f"{file}:{line}: {name} stands there twice")
        located = _locate(name, found.get(name), node, line, file)
        other = hashes.setdefault(located.entry.sha256, name)
        if other != name:
            raise located.error("sha256", f"of {name} is that of {other}: each name has a key of its own")
        keys[name] = located
    return keys


def _locate(name: str, fields: Any, node: yaml.Node, line: int, file: Path) -> Located:
    lines = {"": line}
    if isinstance(node, yaml.MappingNode):
        lines |= {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
    if not isinstance(fields, dict):
        raise ConfigError(f"{file}:{line}: {name} must be a mapping with the key sha256")
    try:
        entry = Entry.model_validate({str(key): value for key, value in fields.items()})
    except ValidationError as error:
        raise ConfigError("\n".join(_problem(name, problem, lines, file) for problem in error.errors())) from None
    return Located(entry, file, lines)


def _problem(name: str, problem: Any, lines: Mapping[str, int], file: Path) -> str:
    where = [str(part) for part in problem["loc"]]
    message = str(problem["msg"]).removeprefix("Value error, ")
    unknown = re.match(r"unknown key '(.*?)':", message)
    line = lines.get(unknown[1] if unknown else where[0] if where else "", lines[""])
    if where == ["sha256"]:
        message = "must be the key's SHA-256, 64 hexadecimal digits, as `pika keys add` writes it"
    return f"{file}:{line}: {'.'.join([name, *where])}: {message}"


def add_key(file: Path, name: str, entry: Entry) -> None:
    """Write one more key at the file's end.

    Raises:
        ConfigError: there is one of that name, or the file cannot be changed.
    """
    fields = entry.model_dump(mode="json", exclude_defaults=True)

    def add(text: str) -> str:
        if name in parse_keys(text, file):
            raise ConfigError(f"{file} has a key named {name}: revoke it first, or choose another name")
        lines = [f"{name}:", *(f"  {field}: {json.dumps(value)}" for field, value in fields.items())]
        block = "\n".join(lines) + "\n"
        return (text.rstrip("\n") + "\n" if text.strip() not in ("", "{}") else "") + block

    _change(file, add, lambda before: {**before, name: entry})


def remove_key(file: Path, name: str) -> None:
    """Take a key out.

    Raises:
        ConfigError: there is none of that name, or the file cannot be changed.
    """

    def remove(text: str) -> str:
        keys = parse_keys(text, file)
        if name not in keys:
            near = difflib.get_close_matches(name, keys, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"keys: {', '.join(keys) or 'none'}"
            raise ConfigError(f"{file} has no key named {name!r}: {hint}")
        lines = text.splitlines(keepends=True)
        first = end = keys[name].lines[""] - 1
        for i, line in enumerate(lines[first + 1 :], first + 1):
            if line.strip() and line[0] not in " \t":
                break
            if line.strip():
                end = i
        return "".join(lines[:first] + lines[end + 1 :])

    _change(file, remove, lambda before: {other: one for other, one in before.items() if other != name})


def _change(file: Path, change: Callable[[str], str], expected: Callable[[dict[str, Entry]], dict[str, Entry]]) -> None:
    """Replace the file by what `change` makes of its text; one process at a time, and whole or not at all."""
    file = file.resolve()  # a link stays one
    try:
        folder = os.open(file.parent, os.O_RDONLY)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        wanted = expected(_entries(text, file))
        changed = change(text)
        try:
            right = _entries(changed, file) == wanted
        except ConfigError:
            right = False
        if not right:
            raise ConfigError(f"{file} is written in a way that cannot be changed here: one name a line, as in `NAME:`")
        _replace(file, changed)
        os.fsync(folder)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}") from error
    finally:
        os.close(folder)


def _entries(text: str, file: Path) -> dict[str, Entry]:
    return {name: located.entry for name, located in parse_keys(text, file).items()}


def _replace(file: Path, text: str) -> None:
    """For its owner alone, who stays the same: the gateway's user must be able to read it."""
    descriptor, new = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # with mode 600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            if file.exists():
                owner = file.stat()
                with suppress(PermissionError):
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
            out.write(text)
            out.flush()
            os.fsync(descriptor)
        Path(new).replace(file)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(new).unlink()
        raise
