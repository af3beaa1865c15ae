"""An evaluation as a table for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table


def table(result: Mapping[str, Any]) -> Table:
    """A row per method, by group."""
    shown = Table(
        box=None,
        header_style="bold",
        title=f"{result['data']['problems']['test']:,} test problems, against always {result['best_single']} [95%]",
        padding=(0, 1, 0, 0),
    )
    shown.add_column("method")
    for heading in ("knob", "accuracy", "difference", "USD", "saving", "at parity", "of limit", "gap closed"):
        shown.add_column(heading, justify="right", no_wrap=True)
    group = None
    for method in result["methods"]:
        if group is not None and method["group"] != group:
            shown.add_section()
        group = method["group"]
        shown.add_row(
            method["label"],
            _knob(method["knob"]),
            f"{method['accuracy']['value']:.4f}",
            _interval(method["accuracy_diff"], 100, "+.1f"),
            f"{method['cost_usd']['value']:.3g}",
            _interval(method["saving"], 100, ".0f"),
            _value(method["parity_saving"]),
            _value(method["limit_share"]),
            _value(method["gap_closed"]),
            style="bold green" if method["name"] == result["verdict"]["method"] else None,
        )
    return shown


def _knob(knob: Mapping[str, Any] | None) -> str:
    values = [value for name, value in (knob or {}).items() if name != "variant"]
    if not values:
        return ""
    numbers = values[0] if isinstance(values[0], list) else [values[0]]
    return " ".join(f"{number:.3g}" for number in numbers)


def _interval(figure: Mapping[str, float] | None, times: float, form: str) -> str:
    if figure is None:
        return ""
    value, low, high = (times * figure[key] + 0.0 for key in ("value", "low", "high"))
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _value(figure: Mapping[str, float] | None) -> str:
    return "" if figure is None else f"{figure['value']:.1%}"
