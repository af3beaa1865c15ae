"""How good probabilities are, with intervals."""

from probes import calibration
from probes.base import FloatArray
from probes.card import Estimate, Metrics


def measure(p: FloatArray, success_rate: FloatArray, split: str, seed: int) -> Metrics:
    """Metrics of probabilities against success rates, both (n,), with bootstrap intervals over problems."""

    def estimate(statistic: calibration.Statistic) -> Estimate:
        return calibration.bootstrap(statistic, p, success_rate, seed)

    return Metrics(
        split=split,
        n=len(p),
        auroc=estimate(calibration.auroc),
        spearman=estimate(calibration.spearman),
        ece=estimate(calibration.ece),
        brier=estimate(calibration.brier),
    )
