"""`report.md`: the report as GitHub shows it."""

import json
import re
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from offline.report.figures import Figure
from offline.report.page import Page, Section
from offline.report.tables import Row, Table

_MARKS = re.compile(r"[\\`*_\[\]<>|~$&@]|:(?=//)|(?<=www)\.|^[#+-]|(?<=^\d)[.)]")


def markdown(page: Page) -> str:
    parts = [escape(page.sentence), escape(page.about), *(_section(section) for section in page.sections)]
    if page.notes:
        parts += ["## Notes", _list(page.notes)]
    parts += ["## Metrics", _list([f"{name}: {meaning}" for name, meaning in page.definitions.items()])]
    return "\n\n".join((*parts, "## Provenance", _fenced(page.provenance))) + "\n"


def _section(section: Section) -> str:
    parts = [f"## {escape(section.title)}"]
    for picture in section.pictures:
        parts += [f"![{escape(picture.title)}]({picture.name}.png)", escape(picture.caption)]
    for table in section.tables:
        shown = [f"### {escape(table.title)}", _table(table), escape(table.caption)]
        if table.key == "mix_by_difficulty":  # long, and the plots above show it
            shown = ["<details><summary>The figures of the plots above</summary>", *shown, "</details>"]
        parts += shown
    return "\n\n".join(parts)


def _table(table: Table) -> str:
    headings = [*table.heads, *(column.heading for column in table.columns)]
    rules = [":--"] * len(table.heads) + ["--:"] * len(table.columns)
    group = len(table.groups()) > 1
    lines = [[*(["group"] if group else []), *map(escape, headings)], [*([":--"] if group else []), *rules]]
    lines += [[*([escape(row.group)] if group else []), *_cells(row)] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cells(row: Row) -> list[str]:
    return [*map(escape, row.heads), *map(_cell, row.figures)]


def _cell(figure: Figure) -> str:
    text = f"**{figure.text}**" if figure.best else figure.text
    return f"{text} {figure.interval}".rstrip()


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {escape(item)}" for item in items)


def _fenced(content: Mapping[str, JsonValue]) -> str:
    """No fence can end in it: JSON's text has backquotes within strings alone, never at the start of a line."""
    return f"```json\n{json.dumps(content, indent=1)}\n```"


def escape(text: str) -> str:
    """Text that stays text: nothing in it is a mark, a tag or a table's bar."""
    return _MARKS.sub(r"\\\g<0>", " ".join(text.split()))
