"""Whether success probabilities come true: what the gauges say of the latest outcomes."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from probes.base import FloatArray
from probes.measures import BINS, brier, ece
from routing_policies.off_policy import accuracy

if TYPE_CHECKING:  # it brings SQLAlchemy
    from server.outcomes.recorder import OutcomeRecorder

LEAST_PER_BIN = 20
"""Outcomes: of fewer, chance alone makes a gap."""


def calibration_error(p: FloatArray, correct: FloatArray) -> float:
    """Expected calibration error of n > 0 outcomes, debiased (`probes.measures.Reliability.ece`): (n,), (n,) -> [0, 1].

    Over bins of equal mass, 15 where each gets `LEAST_PER_BIN` outcomes, else fewer, and no more than there are
    different probabilities.
    """
    bins = min(BINS, max(1, len(p) // LEAST_PER_BIN), len(np.unique(p)))
    return ece(p, correct, bins)


class CalibrationGauges(Collector):
    """Read when scraped from the ledger, so that every worker and every gateway on it says the same."""

    recorder: "OutcomeRecorder | None" = None

    def collect(self) -> Iterable[GaugeMetricFamily]:
        error, squared, count, accurate, low, high = (
            GaugeMetricFamily(name, help_, labels=("arm",))
            for name, help_ in (
                (
                    "pika_calibration_error",
                    "Mean gap between success probability and outcomes, debiased, of the latest outcomes.",
                ),
                ("pika_brier", "Mean squared error of the success probability, of the latest outcomes."),
                ("pika_calibration_outcomes", "How many outcomes these two look at."),
                (
                    "pika_audited_accuracy",
                    "How often the arm is right, of all prompts it could take: by inverse propensity, while requests "
                    "are audited.",
                ),
                ("pika_audited_accuracy_low", "Lower end of its 95% interval."),
                ("pika_audited_accuracy_high", "Upper end of its 95% interval."),
            )
        )
        windows = {} if self.recorder is None else self.recorder.windows()
        for arm, judged in windows.items():
            count.add_metric((arm,), len(judged.p))
            if len(judged.p):
                error.add_metric((arm,), calibration_error(judged.p, judged.correct))
                squared.add_metric((arm,), brier(judged.p, judged.correct))
            audited = judged.while_audited
            found = accuracy(audited.correct, audited.propensity)
            if found is not None:
                accurate.add_metric((arm,), found.value)
                low.add_metric((arm,), found.low)
                high.add_metric((arm,), found.high)
        return [error, squared, count, accurate, low, high]
