"""The reliability curve of a probe as a picture that every browser and the Hub show: SVG, written by hand."""

from collections.abc import Sequence

from probes.card import ReliabilityBin

SIZE, MARGIN = 320, 44
INK, FAINT, POINT = "#444", "#ccc", "#2563eb"


def reliability_svg(bins: Sequence[ReliabilityBin], title: str) -> str:
    """Predicted probability against observed success rate, with intervals; on the diagonal, all is as predicted."""
    side = SIZE - 2 * MARGIN

    def x(value: float) -> float:
        return round(MARGIN + side * value, 1)

    def y(value: float) -> float:
        return round(SIZE - MARGIN - side * value, 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SIZE} {SIZE}" width="{SIZE}" height="{SIZE}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f'<rect width="{SIZE}" height="{SIZE}" fill="#fff"/>',
        f'<text x="{SIZE / 2}" y="20" text-anchor="middle" font-size="13">{_escaped(title)}</text>',
    ]
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts += [
            f'<path d="M{x(tick)} {y(0)}V{y(1)}M{x(0)} {y(tick)}H{x(1)}" stroke="{FAINT}" stroke-width=".5"/>',
            f'<text x="{x(tick)}" y="{y(0) + 14}" text-anchor="middle">{tick:g}</text>',
            f'<text x="{x(0) - 6}" y="{y(tick) + 4}" text-anchor="end">{tick:g}</text>',
        ]
    parts += [
        f'<text x="{SIZE / 2}" y="{SIZE - 12}" text-anchor="middle">predicted success probability</text>',
        f'<text transform="translate(13 {SIZE / 2}) rotate(-90)" text-anchor="middle">observed success rate</text>',
        f'<path d="M{x(0)} {y(0)}L{x(1)} {y(1)}" stroke="{INK}" stroke-dasharray="4 3" fill="none"/>',
    ]
    for bin_ in bins:
        at, observed = x(_unit(bin_.predicted)), bin_.observed
        low, high, middle = (y(_unit(value)) for value in (observed.low, observed.high, observed.value))
        parts += [
            f'<path d="M{at} {low}V{high}" stroke="{POINT}" stroke-width="1.2"/>',
            f'<circle cx="{at}" cy="{middle}" r="3" fill="{POINT}">'
            f"<title>predicted {bin_.predicted:.3f}, observed {observed.value:.3f}, {bin_.weight:.0%} of the problems"
            "</title></circle>",
        ]
    return "\n".join((*parts, "</svg>")) + "\n"


def _unit(value: float) -> float:
    return min(max(value, 0.0), 1.0)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
