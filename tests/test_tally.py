"""What is counted in plain numbers comes to the metrics as if the library had counted it."""

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from server.tally import Spread

BOUNDS = (0.001, 0.5, 10)
VALUES = (0.0, 0.001, 0.0011, 0.5, 0.5, 3.0, 10.0, 1000.0)


def test_a_spread_says_what_the_histogram_itself_would() -> None:
    own, spread_over = CollectorRegistry(), CollectorRegistry()
    histogram = Histogram("seconds", "Waits.", ("arm",), buckets=BOUNDS, registry=own).labels("small")
    spread = Spread(Histogram("seconds", "Waits.", ("arm",), buckets=BOUNDS, registry=spread_over).labels("small"))
    for i, value in enumerate(VALUES):
        histogram.observe(value)
        spread.observe(value)
        if i % 3 == 0:
            spread.pass_on()
    assert spread.pass_on() == VALUES[-1]  # the one since the last time
    assert spread.pass_on() == 0
    assert generate_latest(spread_over) == generate_latest(own)
