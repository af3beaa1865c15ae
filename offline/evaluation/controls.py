"""What any router is compared with and needs no probe: each arm alone, and ways to choose at random."""

from collections.abc import Sequence
from itertools import permutations

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
    budget, alone = float(np.clip(cost_usd, usd.min(), usd.max())), np.eye(len(usd))
    mixes = [alone[i] for i in range(len(usd)) if usd[i] <= budget]
    for i, j in permutations(range(len(usd)), 2):
        if usd[i] <= budget < usd[j]:
            share = (budget - usd[i]) / (usd[j] - usd[i])
            mixes.append((1 - share) * alone[i] + share * alone[j])
    mix = max(mixes, key=lambda shares: float(shares @ rate))
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
