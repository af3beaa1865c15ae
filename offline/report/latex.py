"""`table.tex`: the tables in the form of papers. Needs booktabs, and nothing else."""

import re
import unicodedata
from collections.abc import Sequence

from offline.report.figures import Figure
from offline.report.tables import Row, Table

ESCAPES = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "\N{MINUS SIGN}": "$-$",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "\N{PLUS-MINUS SIGN}": r"$\pm$",
    "\N{GREEK SMALL LETTER ALPHA}": r"$\alpha$",
    "\N{GREEK SMALL LETTER LAMDA}": r"$\lambda$",
    "\N{GREEK SMALL LETTER MU}": r"$\mu$",
    "\N{LESS-THAN OR EQUAL TO}": r"$\leq$",
    "\N{GREATER-THAN OR EQUAL TO}": r"$\geq$",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
}
IN_PAPERS = {"methods": 1, "frontiers": 1, "probes": 2}
"""Tables by how many of their columns of text are shown."""
MOST_COLUMNS = 4
"""Of figures, with their intervals beside them; of more, the intervals stand below."""


def latex(tables: Sequence[Table], sentence: str, provenance: Sequence[str]) -> str:
    """The tables that papers show; the first one's caption begins with `sentence`.

    Args:
        provenance: lines of comment.
    """
    shown = [table for table in tables if table.key in IN_PAPERS]
    head = ["% \\usepackage{booktabs}", *(f"% {_comment(line)}" for line in provenance)]
    captions = [f"{sentence} {table.caption}" if table is shown[0] else table.caption for table in shown]
    return "\n\n".join(["\n".join(head), *map(_table, shown, captions)]) + "\n"


def _table(table: Table, caption: str) -> str:
    heads = IN_PAPERS[table.key]
    columns = r"p{0.25\textwidth}" + "l" * (heads - 1) + "r" * len(table.columns)
    headings = [*table.heads[:heads], *(column.heading for column in table.columns)]
    parts = [_rows(rows, heads, len(table.columns) > MOST_COLUMNS) for _, rows in table.groups()]
    return "\n".join(
        [
            r"\begin{table*}[t]",
            r"\centering",
            rf"\caption{{{escape(caption)} Brackets: 95\% intervals.}}",
            rf"\label{{tab:pika-{table.key.replace('_', '-')}}}",
            r"\footnotesize",
            r"\setlength{\tabcolsep}{4pt}",
            rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            " & ".join(_heading(heading) for heading in headings) + r" \\",
            r"\midrule",
            "\n\\midrule\n".join(parts),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )


def _heading(text: str) -> str:
    """Long ones on two lines, by a table of their own."""
    first, _, second = text.partition(", ")
    if not second:
        return escape(text)
    return _stacked("b", escape(first), f"({escape(second)})")


def _stacked(align: str, above: str, below: str) -> str:
    return rf"\begin{{tabular}}[{align}]{{@{{}}r@{{}}}}{above}\\{below}\end{{tabular}}"


def _rows(rows: Sequence[Row], heads: int, stacked: bool) -> str:
    cells = ([*map(escape, row.heads[:heads]), *(_cell(figure, stacked) for figure in row.figures)] for row in rows)
    lines = (" & ".join(line) + r" \\" for line in cells)
    # What begins with one of these would be read as the argument of the \\ before it.
    return "\n".join(re.sub(r"^[*[]", r"{\g<0>}", line) for line in lines)


def _cell(figure: Figure, stacked: bool) -> str:
    text = escape(figure.text)
    if figure.best:
        text = rf"\textbf{{{text}}}"
    if not figure.interval:
        return text
    interval = f"{{\\scriptsize {escape(figure.interval)}}}"
    return _stacked("t", text, interval) if stacked else f"{text} {interval}"


def escape(text: str) -> str:
    """As TeX typesets it in any font of 8 bits: what it cannot hold becomes its nearest ASCII letters, or `?`."""
    return "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isascii():
        return character
    return unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode() or "?"


def _comment(line: str) -> str:
    return " ".join(line.split())
