"""The tables of a report: what stands in which row and column; the pages only lay them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from offline.report.figures import FINE, PERCENT, POINTS, RATIO, WHOLE, Figure, Money, Unit, knob
from offline.report.metrics import Column, metric
from offline.report.model import Arm, Evaluation, Method

GROUPS = {
    "single": "One arm always",
    "control": "Controls",
    "baseline": "Baselines",
    "policy": "Policies",
    "oracle": "Oracles: they see what no router can",
}
"""In the order of the tables: what is compared with, then what is compared, then what cannot be surpassed."""


@dataclass(frozen=True)
class Row:
    name: str
    """What evaluation.json calls it."""
    heads: tuple[str, ...]
    """One cell of text per heading of `Table.heads`."""
    figures: tuple[Figure, ...]
    """One per column."""
    group: str = ""


@dataclass(frozen=True)
class Table:
    key: str
    title: str
    caption: str
    heads: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def groups(self) -> list[tuple[str, list[Row]]]:
        """Rows by group, in order; one nameless group where there are none."""
        names = dict.fromkeys(row.group for row in self.rows)
        return [(name, [row for row in self.rows if row.group == name]) for name in names]


FRONTIER_METRICS = {
    "parity_saving": PERCENT,
    "limit_share": PERCENT,
    "peak_accuracy_gain": POINTS,
    "gap_closed": PERCENT,
    "aiq": RATIO,
    "p_auccc": RATIO,
    "apgr": RATIO,
    "cpt50": PERCENT,
    "cpt80": PERCENT,
}
"""How each is written."""


def tables(evaluation: Evaluation) -> list[Table]:
    """All that this evaluation has rows for."""
    made = (_controls, _chosen, _frontiers, _arms, _probes, _mix, _mix_by_difficulty, _spread, _human)
    return [table for table in (make(evaluation) for make in made) if table.rows]


def money(evaluation: Evaluation) -> Money:
    """The unit of all costs in a report."""
    return Money.of([evaluation.best.cost_usd.value, *(method.cost_usd.value for method in evaluation.methods)])


def ordered(evaluation: Evaluation) -> list[Method]:
    return sorted(evaluation.methods, key=lambda method: list(GROUPS).index(method.group))


def _controls(evaluation: Evaluation) -> Table:
    labels = {method.name: method.label for method in evaluation.methods}
    verdict = evaluation.verdict
    columns = (Column("gain", "accuracy gained at equal cost, points"),)
    rows = tuple(
        Row(name, (labels.get(name, name),), (POINTS.figure(gain),))
        for name, gain in verdict.accuracy_gain_at_equal_cost.items()
    )
    caption = (
        f"What {labels.get(verdict.method or '', 'the router')} gains over each control at its own cost on the test "
        "problems. Routing beats a control whose interval lies above 0."
    )
    return Table("controls", "Against the controls", caption, ("control",), columns, rows)


def _chosen(evaluation: Evaluation) -> Table:
    usd = money(evaluation)
    columns = (metric("accuracy"), metric("accuracy_diff"), metric("cost_usd", usd.per), metric("saving"))
    units = (PERCENT, POINTS, usd.unit, PERCENT)
    caption = (
        f"Test problems, each knob as chosen on validation problems, against always {evaluation.best_single}. Best in "
        "bold, oracles aside; of savings, the best of those not clearly less accurate: their difference's interval "
        "reaches 0."
    )
    rows = _method_rows(ordered(evaluation), columns, units, lambda method: knob(method.knob))
    close = {method.name for method in evaluation.methods if method.accuracy_diff.high >= 0}
    rows = _embolden(rows, columns, lambda row, column: column.key != "saving" or row.name in close)
    return Table("methods", "At the chosen knobs", caption, ("method", "knob"), columns, rows)


def _frontiers(evaluation: Evaluation) -> Table:
    have = {
        name: unit
        for name, unit in FRONTIER_METRICS.items()
        if any(getattr(method, name) is not None for method in evaluation.methods)
    }
    columns = tuple(metric(name) for name in have)
    methods = [m for m in ordered(evaluation) if any(getattr(m, name) is not None for name in have)]
    caption = (
        f"Over all knobs on the test problems, against always {evaluation.best_single}. Best in bold, oracles aside; a "
        "dash where a figure is not defined."
    )
    rows = _embolden(_method_rows(methods, columns, tuple(have.values())), columns)
    return Table("frontiers", "Whole frontiers", caption, ("method",), columns, rows)


def _method_rows(
    methods: Sequence[Method],
    columns: Sequence[Column],
    units: Sequence[Unit],
    *more: Callable[[Method], str],
) -> tuple[Row, ...]:
    return tuple(
        Row(
            method.name,
            (method.label, *(head(method) for head in more)),
            tuple(unit.figure(getattr(method, column.key)) for column, unit in zip(columns, units, strict=True)),
            GROUPS[method.group],
        )
        for method in methods
    )


def _embolden(
    rows: Sequence[Row], columns: Sequence[Column], competes: Callable[[Row, Column], bool] = lambda row, column: True
) -> tuple[Row, ...]:
    """Marks the best of each column; all whose text is equal to the best's share the mark."""
    marked = list(rows)
    for i, column in enumerate(columns):
        if column.higher_is_better is None:
            continue
        field = [r for r in rows if r.group != GROUPS["oracle"] and competes(r, column)]
        found = [r.figures[i] for r in field if r.figures[i].value is not None]
        if not found:
            continue
        sign = 1 if column.higher_is_better else -1
        best = max(found, key=lambda figure: sign * (figure.value or 0.0)).text
        for j, row in enumerate(marked):
            if rows[j] in field and row.figures[i].text == best:
                figure = replace(row.figures[i], best=True)
                marked[j] = replace(row, figures=(*row.figures[:i], figure, *row.figures[i + 1 :]))
    return tuple(marked)


def _arms(evaluation: Evaluation) -> Table:
    usd = money(evaluation)
    columns = (
        metric("accuracy"),
        metric("cost_usd", usd.per),
        Column("tier_cost_usd", f"tier cost, {usd.per}"),
        Column("mean_input_tokens", "input tokens"),
        Column("mean_output_tokens", "output tokens"),
        Column("k", "answers per problem"),
    )
    tokens = Unit(decimals=1)

    def figures(arm: Arm) -> tuple[Figure, ...]:
        return (
            PERCENT.figure(arm.accuracy),
            usd.unit.figure(arm.cost_usd),
            usd.unit.figure(arm.tier_cost_usd),
            tokens.figure(arm.mean_input_tokens),
            tokens.figure(arm.mean_output_tokens),
            WHOLE.figure(evaluation.data.k.get(arm.name)),
        )

    rows = tuple(Row(arm.name, (arm.name, arm.model), figures(arm)) for arm in evaluation.cheapest_first)
    caption = "The pool, cheapest first: each arm alone on the test problems; tokens are means per answer."
    return Table("arms", "The arms", caption, ("arm", "model"), columns, rows)


def _probes(evaluation: Evaluation) -> Table:
    columns = tuple(metric(name) for name in ("auroc", "ece", "brier", "spearman"))
    rows = tuple(
        Row(
            arm.name,
            (arm.name, arm.probe.kind, arm.probe.reference),
            (
                RATIO.figure(arm.probe.auroc),
                FINE.figure(arm.probe.ece),
                FINE.figure(arm.probe.brier),
                RATIO.figure(arm.probe.spearman),
            ),
        )
        for arm in evaluation.cheapest_first
        if arm.probe is not None
    )
    caption = "Success probabilities against what the arms did on the test problems."
    return Table("probes", "The probes", caption, ("arm", "probe", "reference"), columns, rows)


def _share_columns(evaluation: Evaluation) -> tuple[Column, ...]:
    return tuple(Column(f"share:{arm.name}", f"{arm.name}, %") for arm in evaluation.cheapest_first)


def _mix(evaluation: Evaluation) -> Table:
    columns = _share_columns(evaluation)
    routers = [method for method in ordered(evaluation) if method.group != "single"]
    rows = tuple(
        Row(
            method.name,
            (method.label,),
            tuple(PERCENT.figure(method.mix.get(arm.name, 0.0)) for arm in evaluation.cheapest_first),
            GROUPS[method.group],
        )
        for method in routers
        if method.mix
    )
    caption = "Which arm answers what share of the test problems, at the chosen knobs; arms cheapest first."
    return Table("mix", "Routing mix", caption, ("method",), columns, rows)


def _mix_by_difficulty(evaluation: Evaluation) -> Table:
    labels = {method.name: method.label for method in evaluation.methods}
    columns = (Column("problems", "problems"), *_share_columns(evaluation))
    rows = tuple(
        Row(
            one.method,
            (f"{bin_.low:.2f} to {bin_.high:.2f}",),
            (
                WHOLE.figure(bin_.problems),
                *(
                    PERCENT.figure(bin_.mix.get(arm.name, 0.0) if bin_.problems else None)
                    for arm in evaluation.cheapest_first
                ),
            ),
            labels[one.method],
        )
        for one in evaluation.mix_by_difficulty
        for bin_ in one.bins
    )
    caption = (
        "Which arm answers problems of which difficulty, at the chosen knobs: parts of like size, the easiest first. "
        "Difficulty is 1 - the mean success rate of all arms."
    )
    return Table("mix_by_difficulty", "Routing mix by difficulty", caption, ("difficulty",), columns, rows)


def _spread(evaluation: Evaluation) -> Table:
    columns = (
        Column("resamples", "resampled validation sets"),
        Column("saving_sd", "s.d. of saving, points"),
        Column("accuracy_sd", "s.d. of accuracy, points"),
    )
    deviation = Unit(100, 2)
    rows = tuple(
        Row(
            method.name,
            (method.label, knob(method.knob)),
            (
                WHOLE.figure(len(spread.values)),
                deviation.figure(spread.saving_sd),
                deviation.figure(spread.accuracy_sd),
            ),
        )
        for method in ordered(evaluation)
        if (spread := method.knob_spread) is not None
    )
    caption = "How far the choice of the knob depends on the validation problems that it is chosen on."
    return Table("knob_spread", "Spread of the chosen knobs", caption, ("method", "knob"), columns, rows)


def _human(evaluation: Evaluation) -> Table:
    human = evaluation.human_difficulty
    columns = (metric("spearman"),)
    rows = tuple(Row(arm, (arm,), (RATIO.figure(rho),)) for arm, rho in (human.spearman if human else {}).items())
    caption = f"Difficulty for people (column {human.column}) against each arm's." if human else ""
    return Table("human_difficulty", "Human difficulty", caption, ("arm",), columns, rows)
