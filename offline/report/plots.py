"""The plots of a report, as files and as parts of its page: by Matplotlib, without a display, equal bytes each time."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import Affine2D, Bbox

from offline.report.curves import Curve, Frontier
from offline.report.palette import LIGHT_DARK
from offline.report.panels import INK, MUTE, PAPER, Draw, apart, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("png", "svg", "pdf")
RULE = LIGHT_DARK["rule"][0]
PANEL = 2.5
"""Side of a small panel, inches."""
WIDE_PANEL = 3.0
"""Where names stand beside it."""
SETTINGS: Any = {
    "axes.edgecolor": MUTE,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "font.size": 8.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": MUTE,
    "xtick.labelcolor": INK,
    "ytick.color": MUTE,
    "ytick.labelcolor": INK,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our settings alone, whatever the user's are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of names: a box stands for it
        yield


def saved(figure: Figure, form: str, about: str) -> bytes:
    """The file's bytes; its metadata say what it is about, and no date."""
    metadata: dict[str, dict[str, str | None]] = {
        "png": {"Software": None, "Description": about},
        "svg": {"Date": None, "Creator": None, "Format": None, "Type": None, "Description": about},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Subject": about},
    }
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "pika"}):
        figure.savefig(out, format=form, dpi=200, metadata=metadata[form], facecolor=PAPER)
    return out.getvalue()


def inline(figure: Figure, name: str) -> str:
    """An `<svg>` element for a page: transparent, in the page's font and in colours that follow its theme.

    Args:
        name: differs from plot to plot, so that the ids inside do.
    """
    out = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(out, format="svg", metadata=nothing, transparent=True)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', ' role="img"', svg, count=1)
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    for colour, (light, _) in LIGHT_DARK.items():
        svg = svg.replace(f": {light}", f": var(--{colour})")
    return svg


def grid(draws: Sequence[Draw], width: float = PANEL) -> Figure:
    """One small panel each, so many inches wide, at most three beside each other."""
    across = min(3, len(draws))
    down = -(-len(draws) // across)
    figure = Figure(figsize=(width * across, PANEL * down * 1.08), layout="constrained")
    for i, draw in enumerate(draws):
        draw(figure.add_subplot(down, across, i + 1))
    _lay_out(figure)
    return figure


def frontier_plot(frontier: Frontier) -> Figure:
    """Cost against accuracy: curves over all knobs, a dot at each chosen knob, single arms as squares; no variants."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(color=RULE, linewidth=0.5)
    axes.set_axisbelow(True)
    if frontier.logarithmic:
        axes.set_xscale("log")
    curves = [curve for curve in frontier.curves if not curve.variant]
    for curve in curves:
        _draw_curve(axes, curve)
        if curve.name == frontier.router and curve.points:
            cost, low, high = zip(*((spot.cost, spot.low, spot.high) for spot in curve.points), strict=True)
            axes.fill_between(cost, low, high, color=LIGHT_DARK[curve.style.colour][0], alpha=0.12, linewidth=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}")
    axes.set_xlabel(f"cost, {frontier.cost_unit}")
    axes.set_ylabel("accuracy, %")
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    _label_curves(axes, [curve for curve in curves if curve.points])
    _lay_out(figure)
    _label_points(axes, curves)
    return figure


def _lay_out(figure: Figure) -> None:
    """Once, so that points have their places, and not again for each format."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def _draw_curve(axes: "Axes", curve: Curve) -> None:
    colour, at = LIGHT_DARK[curve.style.colour][0], curve.chosen
    if curve.group == "single":
        axes.plot([at.cost], [at.accuracy], "s", color=colour, markersize=5, zorder=5)
        return
    front = 4 if curve.group == "policy" else 3
    if curve.points:
        dashes: Any = (0, curve.style.dash) if curve.style.dash else "-"
        x, y = [spot.cost for spot in curve.points], [spot.accuracy for spot in curve.points]
        axes.plot(x, y, color=colour, linewidth=0.75 * curve.style.width, linestyle=dashes, zorder=front)
    axes.plot([at.cost], [at.accuracy], "o", color=colour, markersize=4.5, markeredgecolor=PAPER, zorder=front + 0.5)


def _label_points(axes: "Axes", curves: Sequence[Curve]) -> None:
    """Beside methods that have no curve."""
    to_points = 72 / axes.figure.dpi
    spots = [spot for curve in curves for spot in (*curve.points, curve.chosen)]
    dots = axes.transData.transform([(spot.cost, spot.accuracy) for spot in spots]) * to_points  # (n, 2)
    plot = axes.bbox.transformed(Affine2D().scale(to_points))
    names: list[Bbox] = []
    for curve in curves:
        if curve.points:
            continue
        text, (x, y) = short(curve.short, 24), dots[spots.index(curve.chosen)]
        box = _beside(x, y, 5.2 * len(text), dots, names, plot)
        names.append(box)
        right = box.x0 > x
        axes.annotate(
            text,
            xy=(curve.chosen.cost, curve.chosen.accuracy),
            xytext=((box.x0 if right else box.x1) - x, box.y0 - y),
            textcoords="offset points",
            ha="left" if right else "right",
            color=LIGHT_DARK[curve.style.colour][0],
            bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.6},
            zorder=6,
        )


def _beside(x: float, y: float, width: float, dots: Any, names: Sequence[Bbox], plot: Bbox) -> Bbox:
    """The corner around (x, y), in points, where a name hides least of the dots (n, 2) and names, and is near."""
    height = 10.0

    def hides(box: Bbox) -> float:
        outside = 100 * (box.x0 < plot.x0 or box.x1 > plot.x1)
        return float(box.count_contains(dots) + 50 * box.count_overlaps(names) + outside + 0.6 * abs(box.y0 + 5 - y))

    rows = (y - height - 3, y + 3, y - 2 * height - 3, y + height + 3)
    return min(
        (Bbox.from_bounds(left, low, width, height) for left in (x + 5, x - 5 - width) for low in rows), key=hides
    )


def _label_curves(axes: "Axes", curves: Sequence[Curve]) -> None:
    """In the right margin, in the order in which the curves end, each led to by a thin line."""
    ranked = sorted(curves, key=lambda curve: (curve.points[-1].accuracy, curve.chosen.accuracy))
    bottom, top = axes.get_ylim()
    wanted = [(curve.points[-1].accuracy - bottom) / (top - bottom) for curve in ranked]
    for height, curve in zip(apart(wanted, 0.046), ranked, strict=True):
        colour = LIGHT_DARK[curve.style.colour][0]
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6, "relpos": (0, 0.5), "shrinkB": 2}
        axes.annotate(
            short(curve.short, 28),
            xy=(curve.points[-1].cost, curve.points[-1].accuracy),
            xytext=(1.03, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops=line,
        )
