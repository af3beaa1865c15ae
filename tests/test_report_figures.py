import numpy as np
import pytest

from offline.report import latex, markdown
from offline.report.curves import MOST_POINTS, thinned
from offline.report.figures import PERCENT, POINTS, Money, knob
from offline.report.model import Interval, Point
from offline.report.panels import apart, short


def test_numbers_are_written_with_their_unit_and_a_true_minus() -> None:
    figure = POINTS.figure(Interval(value=0.0312, low=-0.0004, high=0.1))
    assert (figure.text, figure.interval) == ("+3.1", "[0.0, +10.0]")
    assert POINTS.text(-0.05) == "−5.0"
    assert PERCENT.text(12.5) == "1,250.0"
    assert PERCENT.figure(None).text == "–"


@pytest.mark.parametrize(
    ("costs", "per", "texts"),
    [
        ([2.5, 0.013], "USD per query", ["2.50", "0.0130"]),
        ([0.0123, 0.0004], "USD per 1,000 queries", ["12.3", "0.400"]),
        ([9.26e-5, 1.74e-6, 0.0], "USD per million queries", ["92.6", "1.74", "0"]),
    ],
)
def test_costs_are_told_per_so_many_queries_that_they_can_be_read(
    costs: list[float], per: str, texts: list[str]
) -> None:
    usd = Money.of(costs)
    assert (usd.per, [usd.unit.text(cost) for cost in costs]) == (per, texts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"lambda": 0.222466}, "λ = 0.2225"),
        ({"variant": "sigmoid", "value": -2.0}, "value = −2"),
        ({"variant": "ratio"}, "–"),
        ({"thresholds": [0.9, 0.65]}, "thresholds = (0.9, 0.65)"),
        (None, "–"),
    ],
)
def test_knobs(value: object, text: str) -> None:
    assert knob(value) == text  # type: ignore[arg-type]  # of any type


def test_labels_stand_apart_within_the_plot_and_in_order() -> None:
    wanted = sorted(np.random.default_rng(0).uniform(0.9, 1.0, 12).tolist())
    placed = apart(wanted, 0.05)
    assert placed == sorted(placed)
    assert np.diff(placed).min() >= 0.05 - 1e-12
    assert placed[-1] <= 1
    assert apart([0.1, 0.5], 0.05) == [0.1, 0.5]


def test_names_that_are_cut_still_differ_at_their_ends() -> None:
    assert short("llama3-chatqa-1.5-70b", 18) == "llama3-c…a-1.5-70b"
    assert short("small", 18) == "small"


def test_long_frontiers_keep_their_ends() -> None:
    costs = np.random.default_rng(0).permutation(1001) / 1000
    points = tuple(Point(knob=c, accuracy=0.5, accuracy_low=0.4, accuracy_high=0.6, cost_usd=c) for c in costs)
    kept = [point.cost_usd for point in thinned(points)]
    assert (kept[0], kept[-1]) == (0.0, 1.0)
    assert kept == sorted(kept)
    assert len(kept) <= MOST_POINTS + 1


def test_a_row_cannot_be_taken_for_an_argument() -> None:
    """After a row's end, TeX would read `[` or `*` as what belongs to it."""
    assert latex.escape("[a] 50% x_1") == r"[a] 50\% x\_1"
    assert latex.escape("é → ü") == "e ? u"


def test_markdown_leaves_plain_sentences_alone() -> None:
    sentence = "Routing saves 62% (59 to 64) at -0.2 points: more than any control."
    assert markdown.escape(sentence) == sentence
    assert markdown.escape("# <b>*a*</b> | 1") == r"\# \<b\>\*a\*\</b\> \| 1"
