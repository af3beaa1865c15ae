"""The small plots of a report, each drawn into axes that it is given: reliability, ROC, mix by difficulty, knobs."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import matplotlib

from offline.report.figures import FINE, RATIO
from offline.report.model import Arm, DifficultyBin, Evaluation, Method
from offline.report.palette import LIGHT_DARK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Draw = Callable[["Axes"], None]

INK, MUTE, PAPER, BLUE = (LIGHT_DARK[name][0] for name in ("ink", "mute", "paper", "blue"))
HALVES = ([0, 0.5, 1], ["0", "0.5", "1"])


def panels(evaluation: Evaluation) -> dict[str, dict[str, Draw]]:
    """By what they are about, then by arm or method; without those that this evaluation has no figures for."""
    arms = evaluation.cheapest_first
    probed = [arm for arm in arms if arm.probe is not None]
    shown = {method.name: method for method in evaluation.methods if method.name not in evaluation.variants}
    found = {
        "reliability": {arm.name: reliability(arm) for arm in probed},
        "roc": {arm.name: roc(arm, probed) for arm in probed},
        "mix": {
            one.method: mix(shown[one.method].label, one.bins, arms)
            for one in evaluation.mix_by_difficulty
            if one.method in shown and one.bins
        },
        "knobs": {
            name: knobs(method) for name, method in shown.items() if method.group == "policy" and _numbers(method)
        },
    }
    return {about: made for about, made in found.items() if made}


def reliability(arm: Arm) -> Draw:
    """Predicted success probability against observed success rate; the larger a dot, the more problems."""

    def draw(axes: "Axes") -> None:
        assert arm.probe is not None
        bins = arm.probe.reliability
        most = max((bin_.problems for bin_ in bins), default=0) or 1
        axes.plot([0, 1], [0, 1], color=MUTE, linewidth=0.8, dashes=(4, 3))
        for bin_ in bins:
            axes.plot([bin_.predicted] * 2, [bin_.low, bin_.high], color=BLUE, linewidth=1.1)
        axes.scatter(
            [bin_.predicted for bin_ in bins],
            [bin_.observed for bin_ in bins],
            s=[3 + 22 * bin_.problems / most for bin_ in bins],
            color=BLUE,
            edgecolor=PAPER,
            linewidth=0.4,
            zorder=3,
        )
        _unit_square(axes, arm.name, "predicted", "observed")
        axes.text(0.97, 0.05, f"ECE {FINE.text(arm.probe.ece.value)}", ha="right", transform=axes.transAxes)

    return draw


def roc(arm: Arm, others: Sequence[Arm]) -> Draw:
    """One probe's ROC curve, before those of the others in grey."""

    def draw(axes: "Axes") -> None:
        assert arm.probe is not None
        axes.plot([0, 1], [0, 1], color=MUTE, linewidth=0.8, dashes=(4, 3))
        for other in others:
            if other is not arm and other.probe is not None and other.probe.roc:
                axes.plot(*zip(*other.probe.roc, strict=True), color=MUTE, linewidth=0.8, alpha=0.4)
        if arm.probe.roc:
            axes.plot(*zip(*arm.probe.roc, strict=True), color=BLUE, linewidth=1.6)
        _unit_square(axes, arm.name, "false positive rate", "true positive rate")
        area = arm.probe.auroc
        text = "AUROC undefined" if area is None else f"AUROC {RATIO.text(area.value)}"
        axes.text(0.97, 0.05, text, ha="right", transform=axes.transAxes)

    return draw


def _unit_square(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=x, ylabel=y, aspect="equal")
    axes.set_xticks(*HALVES)
    axes.set_yticks(*HALVES)
    axes.set_title(short(title, 30), loc="left")


def mix(title: str, bins: Sequence[DifficultyBin], arms: Sequence[Arm]) -> Draw:
    """Share of each arm in bins of difficulty as wide as their problems are many; the cheapest at the bottom."""

    def draw(axes: "Axes") -> None:
        shades = [matplotlib.colormaps["cividis"](0.92 - 0.67 * i / max(len(arms) - 1, 1)) for i in range(len(arms))]
        problems = sum(bin_.problems for bin_ in bins)
        left = 0.0
        for bin_ in bins:
            width, bottom = bin_.problems / problems, 0.0
            for arm, shade in zip(arms, shades, strict=True):
                share = bin_.mix.get(arm.name, 0.0)
                axes.bar(left, share, width, bottom, align="edge", color=shade, edgecolor=PAPER, linewidth=0.8)
                bottom += share
            left += width
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="problems, easiest first", ylabel="share of problems")
        axes.set_xticks(*HALVES)
        axes.set_yticks(*HALVES)
        axes.set_title(short(title, 30), loc="left")
        for shade, arm, height in zip(shades, arms, _label_heights(bins[-1], arms), strict=True):
            axes.plot([1.06], [height], "s", markersize=4.5, color=shade, transform=axes.transAxes, clip_on=False)
            axes.text(1.12, height, short(arm.name, 18), va="center", transform=axes.transAxes)

    return draw


def _label_heights(last: DifficultyBin, arms: Sequence[Arm]) -> list[float]:
    """Beside each arm's part of the last bar, apart from each other."""
    heights, bottom = [], 0.0
    for arm in arms:
        share = last.mix.get(arm.name, 0.0)
        heights.append(bottom + share / 2)
        bottom += share
    return apart(heights, 0.09)


def knobs(method: Method) -> Draw:
    """How often resampled validation problems would have chosen which knob; a line at the one in use."""

    def draw(axes: "Axes") -> None:
        axes.hist(_numbers(method), bins=20, color=BLUE, alpha=0.75)
        chosen = [value for value in (method.knob or {}).values() if isinstance(value, float)]
        if len(chosen) == 1:
            axes.axvline(chosen[0], color=INK, linewidth=1.2)
        axes.set(xlabel="knob", ylabel="resampled sets")
        axes.set_title(short(method.label, 30), loc="left")

    return draw


def _numbers(method: Method) -> list[float]:
    """The chosen knobs of resampled validation problems, where each is one number."""
    values = method.knob_spread.values if method.knob_spread else ()
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return numbers if len(numbers) == len(values) else []


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Heights in [0, 1] as near to those wanted, which ascend, as labels can stand: at least `gap` from each other."""
    placed: list[float] = []
    for height in wanted:
        placed.append(max(height, placed[-1] + gap) if placed else height)
    ceiling = 1.0
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def short(text: str, most: int) -> str:
    """Without its middle where it is longer: names of models differ at their ends."""
    half = most // 2
    return text if len(text) <= most else f"{text[: most - half - 1]}…{text[-half:]}"
