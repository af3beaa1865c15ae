"""What any router is compared with and needs no probe: each arm alone, and ways to choose at random."""

from collections.abc import Sequence

import numpy as np

from offline.evaluation.judge import Validation
from offline.evaluation.methods import Method, Setting, Trial, measured, routed
from offline.evaluation.policies import Judged
from routing_policies.base import FloatArray


def singles(trial: Trial) -> list[Method]:
    """Always each arm, in the pool's order."""
    n = len(trial.samples.usd)
    return [
        routed(trial, f"always:{name}", f"always {name}", "single", np.full((1, n), arm), 0.0)
        for arm, name in enumerate(trial.arms)
    ]


def random(trial: Trial) -> Method:
    """Any arm, each as likely as the others."""
    mix = np.full(len(trial.arms), 1 / len(trial.arms))
    return _by_mix(trial, "random", "random, each arm alike", mix[None], 0, 0.0)


def mixture(trial: Trial, validation: Validation, cost_usd: float) -> Method:
    """Two arms at random in the shares that are most accurate at a cost, on validation problems: the straight line.

    Args:
        cost_usd: mean expected cost per problem, which is the router's on the same problems.
    """
    rate, usd = validation.success_rate.mean(axis=0), validation.cost.mean(axis=0)
    best, mix = -1.0, np.eye(len(rate))[usd.argmin()]
    for i in range(len(rate)):
        for j in range(len(rate)):
            if usd[i] <= cost_usd <= usd[j]:
                share = (cost_usd - usd[i]) / (usd[j] - usd[i]) if usd[j] > usd[i] else 0.0
                if rate[i] + share * (rate[j] - rate[i]) > best:
                    best = rate[i] + share * (rate[j] - rate[i])
                    mix = np.eye(len(rate))[i] * (1 - share) + np.eye(len(rate))[j] * share
    if cost_usd > usd.max():
        mix = np.eye(len(rate))[rate.argmax()]
    return _by_mix(trial, "random_mixture", "random mixture of arms, equal cost", mix[None], 0, 0.0)


def shuffled(trial: Trial, router: Judged) -> Method:
    """The router with its probabilities permuted across problems, the mean over all permutations.

    Every problem is then as likely as any other to be sent where the router sends one: the shares of the arms stay, so
    costs are matched, and all that the router knows of single problems is gone.
    """
    k = len(trial.arms)
    mixes = np.stack([(router.arms == arm).mean(axis=1) for arm in range(k)], axis=1)  # (settings, arms)
    label = f"shuffled {router.method.label}"
    method = router.method
    return _by_mix(trial, "shuffled", label, mixes, method.chosen, trial.known.prefill_usd, method.settings)


def _by_mix(
    trial: Trial,
    name: str,
    label: str,
    mixes: FloatArray,
    chosen: int,
    prefill_usd: float,
    settings: Sequence[Setting] = (None,),
) -> Method:
    """Arms drawn at random in the same shares for every problem, in expectation: mixes (settings, arms)."""
    correct = mixes @ trial.samples.success_rate.T
    usd = mixes @ trial.samples.usd.T + prefill_usd
    return measured(trial, name, label, "control", correct, usd, mixes[chosen], settings, chosen)
