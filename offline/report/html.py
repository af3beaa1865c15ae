"""`report.html`: one file that needs nothing else, and may load nothing else."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from offline.report.page import Page
from offline.report.palette import LIGHT_DARK


def html(page: Page, drawings: Mapping[str, Sequence[str]]) -> str:
    """
    Args:
        drawings: the `<svg>` elements of each picture.
    """
    script = _resource("frontier.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(_resource("template.html"))
    return template.render(
        page=page,
        frontier=asdict(page.frontier),
        drawings={name: [Markup(svg) for svg in made] for name, made in drawings.items()},  # noqa: S704 - ours
        colours=LIGHT_DARK,
        style=Markup(_resource("style.css")),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - ours
        # Colours stand in style attributes, which no hash can name; nothing that a style could load is allowed.
        policy=Markup(
            "default-src 'none'; script-src 'sha256-{}'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
        ).format(digest),
        provenance=json.dumps(page.provenance, indent=1),
    )


def _resource(name: str) -> str:
    return (files("offline.report") / name).read_text(encoding="utf-8")
