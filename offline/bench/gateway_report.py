"""What `pika bench gateway` found: the tables, and the last line."""

from dataclasses import dataclass, field

from rich import box
from rich.console import Group
from rich.table import Table

from offline.bench.gateway_load import Held, Kind, Outcome
from offline.bench.gateway_rivals import BUDGETED, DIRECT, KEYED, LITELLM, NGINX, OURS, PROBED, RECORDED

RIVALS = {NGINX: "nginx", LITELLM: "litellm"}
JUDGED_RATE = 500
"""Requests per second, where the p99 that a gateway adds counts."""
KINDS: tuple[Kind, ...] = ("request", "stream", "one-by-one")
TITLES: dict[Kind, str] = {
    "request": "requests",
    "stream": "streams of 64 chunks, written at once",
    "one-by-one": "streams of 64 chunks, one every 2 ms",
}


@dataclass(frozen=True)
class Point:
    """One load on one system."""

    outcome: Outcome
    cpu_s: float
    """Of all its processes but the engine."""

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per answer."""
        return 1e6 * self.cpu_s / max(1, self.outcome.answers)


@dataclass
class Measured:
    """One system."""

    name: str
    saturated: dict[Kind, Point] = field(default_factory=dict)
    at: dict[tuple[Kind, int], Point] = field(default_factory=dict)
    """By offered rate, where it is below saturation."""
    held: Held | None = None

    @property
    def errors(self) -> int:
        points = [*self.saturated.values(), *self.at.values()]
        return sum(point.outcome.errors for point in points) + (self.held.errors if self.held else 0)

    def p99_ms(self, kind: Kind = "request") -> float | None:
        """Where it counts."""
        point = self.at.get((kind, JUDGED_RATE))
        return None if point is None else point.outcome.p99_ms


def tables(found: list[Measured], rates: tuple[int, ...]) -> Group:
    return Group(*(_table(kind, found, () if kind == "one-by-one" else rates) for kind in KINDS))


def _table(kind: Kind, found: list[Measured], rates: tuple[int, ...]) -> Table:
    table = Table(title=TITLES[kind], title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("p50 / p99 in ms" if rates else "", no_wrap=True)
    for column in ("per s", "CPU us", *(f"at {rate:,}/s" for rate in rates), "errors"):
        table.add_column(column, justify="right", no_wrap=True)
    for one in found:
        saturated = one.saturated[kind]
        points = [one.at.get((kind, rate)) for rate in rates]
        cpu = "" if one.name == DIRECT else f"{saturated.cpu_us:,.0f}"
        errors = sum(point.outcome.errors for point in (saturated, *points) if point)
        row = (one.name, f"{saturated.outcome.per_s:,.0f}", cpu, *map(_latency, points), str(errors))
        table.add_row(*row)
    return table


def _latency(point: Point | None) -> str:
    return "-" if point is None else f"{point.outcome.p50_ms:.1f} / {point.outcome.p99_ms:.1f}"


def summary(found: list[Measured]) -> dict[str, float | None]:
    """The last line. A ratio is the other's CPU divided by ours: above 1, we are cheaper."""
    by_name = {one.name: one for one in found}
    ours, direct = by_name[OURS], by_name[DIRECT]
    recorded, keyed, budgeted, probed = (by_name[name] for name in (RECORDED, KEYED, BUDGETED, PROBED))
    assert ours.held is not None
    last: dict[str, float | None] = {
        "cpu_us_per_request": round(ours.saturated["request"].cpu_us, 1),
        "cpu_us_per_stream": round(ours.saturated["stream"].cpu_us, 1),
        "cpu_us_per_stream_one_by_one": round(ours.saturated["one-by-one"].cpu_us, 1),
        "cpu_us_per_request_with_ledger": round(recorded.saturated["request"].cpu_us, 1),
        "cpu_us_per_request_with_key": round(keyed.saturated["request"].cpu_us, 1),
        "cpu_us_per_request_with_budget": round(budgeted.saturated["request"].cpu_us, 1),
        "cpu_us_per_request_with_probe": round(probed.saturated["request"].cpu_us, 1),
        "errors": sum(one.errors for one in (ours, recorded, keyed, budgeted, probed)),
        "requests_per_s": round(ours.saturated["request"].outcome.per_s, 1),
        "streams_per_s": round(ours.saturated["stream"].outcome.per_s, 1),
        "streams_open": ours.held.begun,
        "streams_open_memory_mb": round(ours.held.memory_mb, 1),
        "p99_ms_at_500": _rounded(ours.p99_ms()),
        "p99_added_ms_at_500": _difference(ours.p99_ms(), direct.p99_ms()),
        "p99_added_ms_at_500_streams": _difference(ours.p99_ms("stream"), direct.p99_ms("stream")),
    }
    for name, key in RIVALS.items():
        if (rival := by_name.get(name)) is not None:
            for kind, suffix in zip(KINDS, ("", "_stream", "_stream_one_by_one"), strict=True):
                ratio = rival.saturated[kind].cpu_us / ours.saturated[kind].cpu_us
                last[f"ratio_vs_{key}{suffix}"] = round(ratio, 3)
            last[f"p99_added_ms_at_500_{key}"] = _difference(rival.p99_ms(), direct.p99_ms())
    return last


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else round(one - other, 2)
