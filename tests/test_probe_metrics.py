"""The metrics of a probe's card and their bootstrap intervals."""

from collections.abc import Callable

import numpy as np
import pytest

from offline.metrics import bootstrap, measure
from probes.base import FloatArray
from probes.card import Metrics
from probes.measures import auroc, brier, ece, spearman

K = 8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def sampled(p: FloatArray, rng: np.random.Generator) -> FloatArray:
    return rng.binomial(K, p) / K


def test_intervals_cover_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    """200 data sets of one kind: probabilities that are .06 too high, whose figures are known from a large one."""

    def draw(n: int) -> tuple[FloatArray, FloatArray]:
        truth = rng.beta(1.2, 0.8, size=n) * 0.9
        return truth + 0.06, sampled(truth, rng)

    large = draw(400_000)
    truth = [auroc(*large), 0.06, brier(*large)]
    covered = np.zeros(3)
    for seed in range(200):
        figures = measure(*draw(400), "test", seed, resamples=200)
        found = (figures.auroc, figures.ece, figures.brier)
        covered += [one.low <= value <= one.high for one, value in zip(found, truth, strict=True)]
        assert all(one.low < one.value < one.high for one in found)
    assert ((covered >= 180) & (covered <= 198)).all(), covered


def test_the_figures_are_those_of_the_data(rng: np.random.Generator) -> None:
    p = rng.permutation(rng.beta(0.4, 0.4, size=900))
    rate = sampled(p**1.5, rng)
    found = measure(p, rate, "test", seed=3, resamples=50)
    assert (found.split, found.n) == ("test", 900)
    for name, statistic in {"auroc": auroc, "spearman": spearman, "ece": ece, "brier": brier}.items():
        assert getattr(found, name).value == pytest.approx(statistic(p, rate))
    parts = found.brier_parts
    assert parts is not None
    assert found.brier.value == pytest.approx(
        parts.reliability.value - parts.resolution.value + parts.uncertainty.value, abs=1e-12
    )
    assert len(found.reliability) == 15
    assert sum(point.weight * point.observed.value for point in found.reliability) == pytest.approx(rate.mean())
    assert sum(point.weight * point.predicted for point in found.reliability) == pytest.approx(p.mean())
    for point in found.reliability:
        assert point.observed.low <= point.observed.value <= point.observed.high
    # The curve is well below the diagonal in its middle, and its intervals say so.
    middle = found.reliability[7]
    assert middle.observed.high < middle.predicted
    assert Metrics.model_validate_json(found.model_dump_json()) == found
    assert measure(p, rate, "test", seed=3, resamples=50) == found


def test_metrics_without_the_newer_figures_still_load() -> None:
    some = {"value": 0.8, "low": 0.7, "high": 0.9}
    old = {"split": "test", "n": 9, "auroc": some, "spearman": some, "ece": some, "brier": some}
    assert Metrics.model_validate(old).reliability == []


Statistic = Callable[[FloatArray, FloatArray], float]


def one_figure(statistic: Statistic) -> Callable[[FloatArray, FloatArray], FloatArray]:
    return lambda p, rate: np.array([statistic(p, rate)])


RANGES = {auroc: (0.0, 1.0), spearman: (-1.0, 1.0), ece: (0.0, 1.0), brier: (0.0, 1.0)}


@pytest.mark.parametrize("statistic", RANGES)
def test_intervals_stay_within_what_a_figure_can_be(statistic: Statistic, rng: np.random.Generator) -> None:
    low, high = RANGES[statistic]
    sure = rng.uniform(size=40) > 0.5
    for p in (np.where(sure, 0.999, 0.001), np.where(sure, 0.001, 0.999), rng.uniform(size=40)):
        for rate in (sure.astype(float), sampled(p, rng)):
            [found] = bootstrap(one_figure(statistic), p, rate, [(low, high)], seed=0, resamples=200)
            assert low <= found.low <= found.high <= high


def test_what_cannot_be_measured_tells_nothing(rng: np.random.Generator) -> None:
    found = measure(rng.uniform(size=50), np.ones(50), "test", seed=0, resamples=20)
    assert (found.auroc.value, found.auroc.low, found.auroc.high) == (0.5, 0.0, 1.0)
    found = measure(np.full(50, 0.7), rng.uniform(size=50), "test", seed=0, resamples=20)
    assert (found.spearman.value, found.spearman.low, found.spearman.high) == (0.0, -1.0, 1.0)
