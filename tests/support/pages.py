"""What a browser, GitHub or TeX would find in a report: its tables as rows of cells, and whatever it would load."""

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Html(HTMLParser):
    """Tags, texts of cells by table, and the first heading or paragraph. Fails where tags do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.scripts: list[str] = []
        self.first = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows = self.tables[dict(attrs).get("id") or str(len(self.tables))] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self._open or "th" in self._open:
            self._rows[-1][-1] += data
        elif "script" in self._open:
            self.scripts[-1] += data
        elif (
            ("h1" in self._open or "p" in self._open)
            and not self.tables
            and not any(tag == "p" and attributes.get("class") == "about" for tag, attributes in self.tags)
        ):
            self.first += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def markdown_page(text: str) -> Html:
    """As GitHub renders it: CommonMark with tables, raw HTML and `~~`."""
    return Html(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))


def tex_tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of cells by label, as they would be read in print."""
    found = {}
    for body in re.findall(r"\\begin\{table\*\}.*?\\end\{table\*\}", text, re.DOTALL):
        (label,) = re.findall(r"\\label\{tab:pika-([a-z-]+)\}", body)
        rows = body.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].replace(r"\midrule", "").strip()
        lines = [line.removesuffix(r"\\") for line in rows.splitlines() if line]
        assert rows.count("\n") + 1 - rows.count("\n\n") == rows.count(r" \\")
        found[label] = [[_printed(cell) for cell in re.split(r"(?<!\\)&", line)] for line in lines]
    return found


def _printed(cell: str) -> str:
    cell = re.sub(r"\\(textbf|scriptsize)\b", "", cell).replace("$-$", "\N{MINUS SIGN}").replace("--", "\N{EN DASH}")
    return " ".join(cell.replace("{", "").replace("}", "").split())
