"""The JSON schema of a probe's `config.json`, for whoever reads or writes artifacts without this code.

python -m probes.schema    writes `probe_card.schema.json` anew, after a change of the card
"""

import ast
import inspect
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from probes import card

FILE = Path(__file__).with_name("probe_card.schema.json")


def schema_text() -> str:
    """What the file is to hold: the card's classes with the docstrings of their fields."""
    schema = card.ProbeCard.model_json_schema(by_alias=True, mode="serialization")
    for name, fields in _docstrings().items():
        parts = schema if name == schema["title"] else schema["$defs"].get(name, {})
        for field, description in parts.get("properties", {}).items():
            description.pop("title", None)
            if text := fields.get(field):
                description["description"] = text
    schema["required"] = ["schema_version", *schema["required"]]
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _docstrings() -> dict[str, dict[str, str]]:
    """By class and field of card.py, as JSON names it."""
    found: dict[str, dict[str, Any]] = {}
    for node in ast.parse(inspect.getsource(card)).body:
        if isinstance(node, ast.ClassDef):
            fields = found.setdefault(node.name, {})
            for statement, following in pairwise(node.body):
                match statement, following:
                    case ast.AnnAssign(target=ast.Name(field)), ast.Expr(value=ast.Constant(str(text))):
                        fields[field.rstrip("_")] = inspect.cleandoc(text)
    return found


if __name__ == "__main__":
    FILE.write_text(schema_text(), encoding="utf-8")
