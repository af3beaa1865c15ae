"""docs/configuration.md: every key of the YAML file, from the sections' fields and the docstrings below them."""

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from server.config import Settings

HEAD = """\
# Configuration

<!-- Written by `python -m server.reference` from the sections' fields: change those, not this page. -->

One YAML file says what is served (`models`), what is chosen among (`arms`), and how (`policy`); all else has a
default. An unknown key is an error that names the nearest valid one; a value out of bounds is one too. Relative paths
stand against the file's folder. Keys whose names end in `_env` hold the name of an environment variable, for secrets
never stand in the file; the endings `_s`, `_ms`, `_mb`, `_kb` and `_usd` are units. [pool.yaml](pool.yaml) is a whole
file, of which the examples below are the parts.

    pika check pool.yaml         # is it right, does all of it fit together, and what to do where not
    kill -HUP PID                # or POST /admin/reload: a running gateway takes the changed file

A reload takes all of a change or, where something is wrong with it, nothing; `server` is read at the start alone. What
a request asks of routing wins over its key's entry, and that over this file, where `allow_request` lets it
([the API](api.md)).

A part that stands under a name of your own is written `NAME`, an item of a list `[]`.
"""


class UndocumentedError(Exception):
    """The code lacks what a page needs; the message says what to add."""


@dataclass(frozen=True)
class Row:
    """One key."""

    key: str
    form: str
    default: str
    meaning: str


def page(example: Path) -> str:
    """
    Args:
        example: a whole configuration, in which every section stands.

    Raises:
        UndocumentedError: a key has no docstring, or a section no example.
    """
    parts = examples(example.read_text(encoding="utf-8"))
    schema = Settings.model_json_schema(by_alias=True)
    documents = _documents(Settings)
    sections = [HEAD.rstrip()]
    for name, field in Settings.model_fields.items():
        if name not in parts:
            raise UndocumentedError(f"docs/{example.name} has no example of {name}: add one")
        one = schema["properties"][name]
        text = [f"## {name}", field.description or documents["Settings"].get(name) or _of_class(one, documents)]
        text.append(f"```yaml\n{parts[name]}\n```")
        rows = list(_rows(one, schema, documents, ""))
        if not rows:
            rows = [Row(name, _form(one), _default(one, name in schema["required"]), "")]
        text.append(_table(rows))
        sections.append("\n\n".join(text))
    return "\n\n".join(sections) + "\n"


def examples(text: str) -> dict[str, str]:
    """The lines of each top-level key of a YAML file; of one that is commented out, without the `#` before them."""
    text = re.sub(r"(?m)^# (?=[a-z_]+: \{)", "", text)
    parts = re.split(r"(?m)^(?=[a-z_]+:|#|$)", text)
    return {part.partition(":")[0]: part.rstrip() for part in parts if re.match(r"[a-z_]+:", part)}


def _rows(schema: dict[str, Any], whole: dict[str, Any], documents: dict[str, Any], prefix: str) -> Iterator[Row]:
    """The keys of a section and of those within it; a section that is a top-level one elsewhere is not told again."""
    top = {_reference(one) for one in whole["properties"].values()} - {None}
    found = _reference(schema)
    if found is None:
        return
    if prefix and found in top:
        return
    section = whole["$defs"][found]
    within = prefix + ("NAME." if "additionalProperties" in schema else "")
    for key, one in section.get("properties", {}).items():
        meaning = documents.get(found, {}).get(key, "")
        below = _reference(one)
        if not meaning and below is not None:
            meaning = documents.get(below, {}).get("", "")
        if not meaning:
            raise UndocumentedError(f"{found}.{key} has no docstring: write one below the field")
        name = f"{within}{key}" + ("[]" if _is_list(one) and below is not None else "")
        yield Row(name, _form(one), _default(one, key in section.get("required", [])), meaning)
        yield from _rows(one, whole, documents, f"{name}.")


def _reference(schema: dict[str, Any]) -> str | None:
    """Name of the section that a value is, or is a list or mapping of."""
    for one in (schema, schema.get("items"), schema.get("additionalProperties"), *schema.get("anyOf", [])):
        if isinstance(one, dict) and "$ref" in one:
            return str(one["$ref"]).rpartition("/")[2]
    return None


def _is_list(schema: dict[str, Any]) -> bool:
    return schema.get("type") == "array"


def _form(schema: dict[str, Any]) -> str:
    """What a value may be, in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_form(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "$ref" in schema:
        return "mapping"
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{one}`" for one in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array":
            return f"list of {_form(schema['items'])}" if "$ref" not in schema["items"] else "list of mappings"
        case "object":
            inner = schema.get("additionalProperties")
            return "mapping" if not isinstance(inner, dict) else f"mapping of names to {_form(inner)}"
        case "boolean":
            return "`true`, `false`"
        case "integer":
            return "whole number" + _bounds(schema)
        case "number":
            return "number" + _bounds(schema)
        case "string":
            return "text"
        case _:
            return "anything"


def _bounds(schema: dict[str, Any]) -> str:
    signs = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    bounds = [f"{sign} {schema[key]:g}" for key, sign in signs if key in schema]
    return f" {', '.join(bounds)}" if bounds else ""


def _default(schema: dict[str, Any], required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    if value is None or isinstance(value, dict) or value == []:
        return ""
    if isinstance(value, list) and value == schema.get("items", {}).get("enum"):
        return "all"
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _of_class(schema: dict[str, Any], documents: dict[str, dict[str, str]]) -> str:
    found = _reference(schema)
    text = documents.get(found or "", {}).get("", "")
    if not text:
        raise UndocumentedError(f"{found or schema} has no docstring: write one")
    return text


def _documents(root: type[BaseModel]) -> dict[str, dict[str, str]]:
    """Docstrings by class and key; of the class itself under "". Keys as the file has them."""
    found: dict[str, dict[str, str]] = {}
    for module in sorted({cls.__module__ for cls in _classes(root)}):
        for node in ast.parse(inspect.getsource(sys.modules[module])).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = {"": _one_line(ast.get_docstring(node) or ""), **_below_fields(node)}
    for cls in _classes(root):
        for name, field in cls.model_fields.items():
            if field.alias and name in found[cls.__name__]:
                found[cls.__name__][field.alias] = found[cls.__name__][name]
    return found


def _below_fields(node: ast.ClassDef) -> dict[str, str]:
    fields = {}
    for statement, following in pairwise(node.body):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(field)), ast.Expr(value=ast.Constant(str(text))):
                fields[field] = _one_line(text)
    return fields


def _classes(root: type[BaseModel]) -> set[type[BaseModel]]:
    """A model and all that its fields are made of."""
    found: set[type[BaseModel]] = set()
    left: list[Any] = [root]
    while left:
        one = left.pop()
        if isinstance(one, type) and issubclass(one, BaseModel):
            if one not in found:
                found.add(one)
                left.extend(field.annotation for field in one.model_fields.values())
        else:
            left.extend(getattr(one, "__args__", ()))
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(rows: list[Row]) -> str:
    lines = ["| key | value | default | meaning |", "| --- | --- | --- | --- |"]
    for row in rows:
        cells = (f"`{row.key}`", row.form, row.default, row.meaning.replace("|", "\\|"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
