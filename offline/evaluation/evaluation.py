"""All methods on the same test problems: policies, baselines, controls, oracles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offline.evaluate import DataError
from offline.evaluation import controls, oracles, policies
from offline.evaluation.bootstrap import resampled, weights
from offline.evaluation.figures import Scale
from offline.evaluation.frontier import frontier
from offline.evaluation.judge import Validation
from offline.evaluation.methods import Method, Trial
from offline.evaluation.samples import Samples
from offline.evaluation.self_consistency import self_consistency
from offline.evaluation.text_probes import text_router
from offline.policy_search import SIMPLEST_FIRST, Table, Target, accuracy_table, meeting, simplest
from routing_policies.base import FloatArray

TEXT = {"length": "length probes", "tfidf": "TF-IDF probes"}
RESAMPLES = 200
"""Sets of validation problems by which the spread of chosen knobs is told."""


@dataclass(frozen=True)
class Ask:
    target: Target
    policies: Sequence[str]
    """Names of `policies.LABELS`."""
    texts: Sequence[str]
    """Kinds of text probes to compare with."""
    seed: int
    draws: int


@dataclass(frozen=True)
class Known:
    """Problems of one split: what the gateway would know of them, and every answer."""

    samples: Samples
    known: Validation


@dataclass(frozen=True)
class Evaluation:
    methods: list[Method]
    scale: Scale
    router: Method
    """The policy that `pika tune` would choose, which the verdict is about."""
    rivals: dict[str, FloatArray]
    """Accuracy of what knows less, at the router's cost: by name, (1 + draws,) each."""
    notes: list[str]


def evaluate(
    train: Samples | None,
    validation: Known,
    test: Known,
    ask: Ask,
    on_step: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """
    Args:
        train: what text probes are fitted on; None leaves them out.
        on_step: called with what is measured next.

    Raises:
        DataError: the best single arm costs nothing, so that nothing can be saved.
        PolicyError: a probability or cost is NaN.
    """
    data, notes = validation.known, []
    trial = Trial(
        test.samples, test.known, weights(len(test.samples.usd), ask.draws, ask.seed), validation.known.best_arm
    )
    if not test.samples.usd[:, trial.best_arm].any():
        raise DataError(
            f"always {trial.arms[trial.best_arm]} costs nothing by the configured prices, so nothing can be saved: set "
            "usd_per_million_tokens of its model"
        )
    resamples = resampled(len(data.success), RESAMPLES, ask.seed)
    table = accuracy_table(data)
    found: dict[str, policies.Judged] = {}
    router_name = _router(data, ask, table)
    for name in dict.fromkeys((*policies.possible(ask.policies, data.tier_cost), router_name)):
        on_step(policies.LABELS[name])
        found[name] = policies.run(name, data, trial, ask.target, table, resamples)
    router = found[router_name]

    on_step("controls")
    singles = controls.singles(trial)
    mixture = controls.mixture(trial, data, router.validation_usd)
    shuffled = controls.shuffled(trial, router)
    plain = [controls.random(trial), shuffled, mixture]

    usd = router.method.cost_usd[:, router.method.chosen]
    rivals = {
        "shuffled": shuffled.accuracy[:, shuffled.chosen],  # it sends as many problems to each arm as the router does
        "random_mixture": _at_cost(
            np.stack([one.cost_usd[:, 0] for one in singles], axis=1),
            np.stack([one.accuracy[:, 0] for one in singles], axis=1),
            usd,
        ),
    }
    texts = []
    for kind in ask.texts if train is not None else ():
        on_step(TEXT[kind])
        assert train is not None
        chosen_on, judged_on = text_router(kind, train, validation.samples, test.samples, (data, test.known), ask.seed)
        text_table = accuracy_table(chosen_on)
        policy = _router(chosen_on, ask, text_table)
        called: policies.Called = (kind, f"{TEXT[kind]}, {policies.LABELS[policy]}", "baseline")
        text = policies.run(policy, chosen_on, trial, ask.target, text_table, resamples, judged_on, called)
        corners = text.corners
        rivals[kind] = _at_cost(text.method.cost_usd[:, corners], text.method.accuracy[:, corners], usd)
        texts.append(text.method)
    if train is None:
        notes.append("There are no train problems, so routing by length and TF-IDF is left out.")

    on_step("self-consistency")
    voting = self_consistency(trial, validation.samples, ask.target)
    if voting is None:
        notes.append(
            "Self-consistency is left out: no arm cheaper than the best one has two answers per problem to compare."
        )
    on_step("oracles")
    bounds = [oracles.in_sample(trial), oracles.research(trial)]
    k = min(arm.k for arm in test.samples.arms)
    limit = oracles.limit(trial, ask.seed) if k >= 2 else None
    if limit is None:
        notes.append("One answer per problem tells no success rate, so there is no limit to have a share of.")
    elif k < 64:
        notes.append(
            f"The limit chooses by {k // 2} answers per problem and arm, so it understates what true rates would allow."
        )
    methods = [one.method for one in found.values()]
    return Evaluation(
        methods=[
            *methods, *singles, *plain, *texts, *([voting] if voting else []), *([limit] if limit else []), *bounds
        ],
        scale=Scale(trial, singles, limit),
        router=router.method,
        rivals=rivals,
        notes=notes,
    )  # fmt: skip


def _router(data: Validation, ask: Ask, table: Table) -> str:
    """The policy that `pika tune` chooses; the simplest where none reaches the target."""
    names = [name for name in SIMPLEST_FIRST if name in ask.policies] or list(SIMPLEST_FIRST)
    found = meeting(data, ask.target, names, table)
    return found[simplest(found, data, ask.target.measure)][0].policy if found else names[0]


def _at_cost(cost_usd: FloatArray, accuracy: FloatArray, usd: FloatArray) -> FloatArray:
    """The most accurate mixture of settings at a cost: (1 + draws, settings) twice, (1 + draws,) -> (1 + draws,)."""
    return frontier(cost_usd, accuracy).accuracy_at(usd)
