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
IN_PAPERS = ("methods", "frontiers", "probes")


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
    columns = "l" * len(table.heads) + "r" * len(table.columns)
    headings = [*table.heads, *(column.heading for column in table.columns)]
    parts = [_rows(rows) for _, rows in table.groups()]
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
    return rf"\begin{{tabular}}[b]{{@{{}}r@{{}}}}{escape(first)}\\({escape(second)})\end{{tabular}}"


def _rows(rows: Sequence[Row]) -> str:
    lines = (" & ".join([*map(escape, row.heads), *map(_cell, row.figures)]) + r" \\" for row in rows)
    # What begins with one of these would be read as the argument of the \\ before it.
    return "\n".join(re.sub(r"^[*[]", r"{\g<0>}", line) for line in lines)


def _cell(figure: Figure) -> str:
    text = escape(figure.text)
    if figure.best:
        text = rf"\textbf{{{text}}}"
    return f"{text} {{\\scriptsize {escape(figure.interval)}}}" if figure.interval else text


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
