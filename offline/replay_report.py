"""What `pika replay` found, as tables for a terminal, as JSON, and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from offline.replay_plan import Asked
from offline.replay_traffic import Traffic
from offline.whole_file import whole
from routing_policies.off_policy import Estimate
from routing_policies.replay import Replayed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CELL = (0, 1, 0, 0)
WIDE = 8.0
"""Costs that lie further apart than this are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Row:
    """One way to choose, and what comes of it."""

    label: str
    result: Replayed
    asked: Asked | None = None
    """None: what was done, or one arm for all."""
    arm: str | None = None
    """The one for all."""


@dataclass(frozen=True)
class Found:
    """All that a run found."""

    ledger: str
    traffic: Traffic
    was: Row
    what_if: list[Row]
    always: list[Row]
    """One per arm, in the pool's order."""
    best: int
    """Of `always`: the one expected to be right most often."""
    sweep: list[Row]


def tables(found: Found) -> list[Table]:
    """What each way costs, how often it is right, where the requests go; the sweep."""
    best, was = found.always[found.best], found.was
    rows = [was, *found.what_if, *found.always]
    title = f"{was.result.requests:,} requests, {_period(found.traffic)}"
    costs = _table(title, "moved", "USD each", "saves [95%]", "vs best [95%]")
    right = _table("How many are answered right", "expected [95%]", "by outcomes [95%]", "corrected [95%]")
    mix = _table("Share of the requests that each arm gets", *found.traffic.arms)
    for row in rows:
        result, outcomes = row.result, row.result.from_outcomes
        label, style = row.label + " (best)" * (row is best), "bold" if row is was else None
        saves = "" if row is was else _interval(result.saving)
        moved, against = (
            "" if row is was else f"{result.changed:.1%}",
            "" if row is best else _interval(result.saving_vs_best),
        )
        costs.add_row(label, moved, f"{result.cost_usd:.3g}", saves, against, style=style)
        expected, told = _interval(result.expected_accuracy), _interval(outcomes.inverse_propensity)
        right.add_row(label, expected, told, _interval(outcomes.doubly_robust), style=style)
    for row in (was, *found.what_if):
        mix.add_row(row.label, *(f"{share:.1%}" for share in row.result.mix), style="bold" if row is was else None)
    return [costs, right, mix, *([_sweep(found)] if found.sweep else [])]


def _sweep(found: Found) -> Table:
    table = _table("Over the knob", "moved", "USD each", "saves [95%]", "expected", "by outcomes [95%]")
    for row in found.sweep:
        result = row.result
        told = _interval(result.from_outcomes.inverse_propensity)
        expected = f"{result.expected_accuracy.value:.1%}"
        cells = (f"{result.changed:.1%}", f"{result.cost_usd:.3g}", _interval(result.saving), expected, told)
        table.add_row(row.label, *cells)
    return table


def _table(title: str, *headings: str) -> Table:
    table = Table(box=None, header_style="bold", title=title, padding=CELL)
    table.add_column("", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def notes(found: Found) -> list[str]:
    """What to know when reading the tables."""
    said = [f"{count:,} requests {why} are left out" for why, count in found.traffic.left_out.items()]
    said += [
        "moved: share that goes elsewhere than it went; saves: of what was paid; vs best: of what the best arm costs",
        "expected: by success probabilities, which are as true as the probes; by outcomes: of requests that went where "
        "the policy sends them, weighted by 1 / the chance that they did; corrected: expected, set right by outcomes",
    ]
    reasons: dict[str, list[str]] = {}
    for row in (found.was, *found.what_if, *found.always, *found.sweep):
        if row.result.from_outcomes.says:
            reasons.setdefault(_reason(row), []).append(row.label)
    for reason, labels in reasons.items():
        of = "" if reason.startswith("no outcomes") else f"{', '.join(labels[:3])}{' ...' * (len(labels) > 3)}: "
        said.append(of + reason)
    said += [
        f"answers of {arm} cost {ratio:.2f} times what was expected of them; so do those that would move there"
        for arm, ratio in zip(found.traffic.arms, found.traffic.record.cost_ratio.tolist(), strict=True)
        if not 0.8 < ratio < 1.25
    ]
    return said


def _reason(row: Row) -> str:
    """Without the numbers that differ from row to row."""
    outcomes = row.result.from_outcomes
    if outcomes.says.startswith("too few"):
        return "too few outcomes of the arms chosen; wait for more, or raise audit.share"
    if outcomes.says.startswith("outcomes cannot say"):
        return (
            "outcomes cannot say, for chance sent too few requests like these there; `audit: {share: 0.01}` in the "
            "configuration does from now on"
        )
    return outcomes.says


def to_json(found: Found) -> dict[str, Any]:
    """Everything, costs in USD per request."""
    traffic = found.traffic

    def entry(row: Row) -> dict[str, Any]:
        result = asdict(row.result)
        result["mix"] = dict(zip(traffic.arms, row.result.mix, strict=True))
        result["saving_vs_as_it_was"] = result.pop("saving")
        result["saving_vs_always_best"] = result.pop("saving_vs_best")
        head: dict[str, Any] = {}
        if row.asked is not None:
            head = {"policy": row.asked.policy, "knobs": _told(row.asked.knobs)}
        elif row.arm is not None:
            head = {"arm": row.arm}
        return {**head, **result}

    return {
        "ledger": found.ledger,
        "pool": traffic.pool,
        "arms": list(traffic.arms),
        "usd_per_million_tokens": dict(zip(traffic.arms, map(list, traffic.prices), strict=True)),
        "first": _time(traffic.first),
        "last": _time(traffic.last),
        "requests": found.was.result.requests,
        "left_out": dict(traffic.left_out),
        "cost_ratio": dict(zip(traffic.arms, traffic.record.cost_ratio.tolist(), strict=True)),
        "as_it_was": entry(found.was),
        "what_if": [entry(row) for row in found.what_if],
        "always": [entry(row) for row in found.always],
        "best": traffic.arms[found.best],
        "sweep": [entry(row) for row in found.sweep],
    }


def write_plot(found: Found, file: Path) -> None:
    """Cost against accuracy: the sweep as a curve, what was done and single arms as points.

    Raises:
        OSError: it cannot be written.
    """
    from matplotlib.figure import Figure

    from offline.report.palette import LIGHT_DARK
    from offline.report.plots import drawing, saved

    colour = {name: light for name, (light, _) in LIGHT_DARK.items()}
    with drawing():
        figure = Figure(figsize=(7.0, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(color=colour["rule"], linewidth=0.5)
        axes.set_axisbelow(True)
        curve = sorted(found.sweep, key=lambda row: row.result.cost_usd)
        if curve:
            knob = curve[0].asked
            label = "" if knob is None else f"{knob.policy}, expected"
            axes.plot(*_spots(curve), "-", color=colour["blue"], linewidth=2, label=label)
        _outcome_bars(axes, [*curve, *found.what_if, found.was], colour["vermilion"])
        for rows, marker, tint, label in (
            (found.always, "s", colour["ink"], "one arm for all, expected"),
            (found.what_if, "o", colour["blue"], "what if, expected"),
            ([found.was], "D", colour["green"], "as it was, expected"),
        ):
            axes.plot(*_spots(rows), marker, color=tint, markersize=6, label=label if rows else None)
        for row in (*found.always, *found.what_if, found.was):
            spot = (row.result.cost_usd * 1e3, row.result.expected_accuracy.value * 100)
            axes.annotate(row.arm or row.label, spot, xytext=(6, -9), textcoords="offset points", fontsize=7)
        costs = [row.result.cost_usd for row in (*curve, *found.what_if, *found.always, found.was)]
        if 0 < WIDE * min(costs) < max(costs):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda usd, _: f"{usd:g}")
        axes.set_xlabel("USD per 1,000 requests")
        axes.set_ylabel("right, %")
        axes.set_title(f"{found.was.result.requests:,} requests, {_period(found.traffic)}", loc="left")
        axes.legend(frameon=False, fontsize=7, loc="lower right")
        form = file.suffix.removeprefix(".").lower()
        with whole(file) as unfinished:
            unfinished.write_bytes(saved(figure, form, "pika replay: cost against accuracy"))


def _outcome_bars(axes: "Axes", rows: Sequence[Row], colour: str) -> None:
    known = [(row, row.result.from_outcomes.inverse_propensity) for row in rows]
    told = [(row.result.cost_usd * 1e3, estimate) for row, estimate in known if estimate is not None]
    if told:
        y = [100 * estimate.value for _, estimate in told]
        ends = [
            [max(100 * (estimate.value - estimate.low), 0) for _, estimate in told],
            [max(100 * (estimate.high - estimate.value), 0) for _, estimate in told],
        ]
        axes.errorbar([x for x, _ in told], y, ends, fmt=".", color=colour, linewidth=0.8, label="by outcomes, 95%")


def _spots(rows: Sequence[Row]) -> tuple[list[float], list[float]]:
    return (
        [row.result.cost_usd * 1e3 for row in rows],
        [row.result.expected_accuracy.value * 100 for row in rows],
    )


def _told(knobs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in knobs.items() if name not in ("table", "guarantee")}


def _interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return "-"
    value, low, high = (100 * one + 0.0 for one in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f}% [{low:.1f}, {high:.1f}]"


def _period(traffic: Traffic) -> str:
    return f"{_time(traffic.first)} to {_time(traffic.last)}"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%MZ")
