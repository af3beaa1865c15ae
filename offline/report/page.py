"""What a report says, in its order: `report.html`, `report.md` and `report.json` lay it out."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from offline.report.curves import Frontier, frontier
from offline.report.figures import Figure
from offline.report.metrics import Column
from offline.report.model import Evaluation
from offline.report.tables import Table, tables


@dataclass(frozen=True)
class Picture:
    name: str
    """Of its files, without suffix."""
    title: str
    caption: str


@dataclass(frozen=True)
class Section:
    title: str
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Tile:
    """One of the few figures that matter most."""

    heading: str
    figure: Figure


@dataclass(frozen=True)
class Page:
    sentence: str
    """Whether routing beats the controls, and by how much: the report's first sentence."""
    about: str
    """The data, in one line."""
    tiles: tuple[Tile, ...]
    """Of the method that the sentence names; none where it names none."""
    frontier: Frontier
    sections: tuple[Section, ...]
    definitions: Mapping[str, str]
    """What the metrics mean."""
    notes: tuple[str, ...]
    provenance: Mapping[str, JsonValue]

    @property
    def tables(self) -> list[Table]:
        return [table for section in self.sections for table in section.tables]


PICTURES = {
    "frontier": Picture(
        "frontier",
        "Cost-accuracy frontier",
        "Test problems. Each curve is a method over all its knobs, its dot the knob that validation problems chose; "
        "squares are single arms, the band a 95% interval. Better is up and to the left. Variants are in the tables.",
    ),
    "reliability": Picture(
        "reliability",
        "Reliability",
        "Predicted success probability against the success rate observed, with 95% intervals: on the diagonal all is "
        "as predicted. The larger a dot, the more problems.",
    ),
    "roc": Picture(
        "roc",
        "ROC curves",
        "How well each probe ranks problems that its arm solves before the others; in grey the other arms' probes.",
    ),
    "mix": Picture(
        "mix",
        "Routing mix by difficulty",
        "Who answers what: all test problems, the easiest on the left; the cheaper an arm, the lighter.",
    ),
    "knobs": Picture(
        "knobs",
        "Chosen knobs",
        "The knobs that resampled validation problems would have chosen; the line is the one in use.",
    ),
}
SECTIONS = (
    ("Cost and accuracy", ("frontier",), ("controls", "methods", "frontiers")),
    ("Probes", ("reliability", "roc"), ("probes",)),
    ("Who answers what", ("mix",), ("mix", "mix_by_difficulty")),
    ("How firm the knobs are", ("knobs",), ("knob_spread",)),
    ("The pool", (), ("arms", "human_difficulty")),
)
"""Title, pictures, tables."""
TILES = ("saving", "accuracy_diff", "parity_saving", "gap_closed")


def page(evaluation: Evaluation, drawn: Collection[str], provenance: Mapping[str, JsonValue]) -> Page:
    """
    Args:
        drawn: the pictures that there are.
        provenance: of this report.
    """
    made = {table.key: table for table in tables(evaluation)}
    sections = [
        Section(
            title,
            tuple(PICTURES[name] for name in pictures if name in drawn),
            tuple(made[key] for key in keys if key in made),
        )
        for title, pictures, keys in SECTIONS
    ]
    return Page(
        sentence=evaluation.verdict.sentence,
        about=_about(evaluation),
        tiles=_tiles(evaluation.verdict.method, [made[key] for key in ("methods", "frontiers") if key in made]),
        frontier=frontier(evaluation),
        sections=tuple(section for section in sections if section.pictures or section.tables),
        definitions={
            column.heading: column.meaning for table in made.values() for column in table.columns if column.meaning
        },
        notes=evaluation.notes,
        provenance={"report": dict(provenance), "evaluation": evaluation.provenance},
    )


def _about(evaluation: Evaluation) -> str:
    data = evaluation.data
    problems = f"{data.problems.test:,} test problems, knobs chosen on {data.problems.validation:,} others"
    repeated = f"; {data.duplicates_removed:,} duplicates removed" if data.duplicates_removed else ""
    k = sorted(set(data.k.values()))
    answers = f"k = {' to '.join(str(one) for one in dict.fromkeys((k[0], k[-1])))}" if k else ""
    return ", ".join(filter(None, (data.benchmark, f"{len(evaluation.arms)} arms", answers, problems))) + repeated


def _tiles(method: str | None, among: list[Table]) -> tuple[Tile, ...]:
    found: dict[str, tuple[Column, Figure]] = {
        column.key: (column, figure)
        for table in among
        for row in table.rows
        if row.name == method
        for column, figure in zip(table.columns, row.figures, strict=True)
    }
    return tuple(
        Tile(found[key][0].heading, found[key][1]) for key in TILES if key in found and found[key][1].value is not None
    )
