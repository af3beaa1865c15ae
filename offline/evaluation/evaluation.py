"""All methods on the same test problems: policies, baselines, controls, oracles."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offline.evaluate import DataError
from offline.evaluation import controls, oracles, policies
from offline.evaluation.bootstrap import weights
from offline.evaluation.figures import Scale
from offline.evaluation.frontier import frontier
from offline.evaluation.judge import Validation
from offline.evaluation.methods import Method, Trial
from offline.evaluation.samples import Samples
from offline.evaluation.second_look import Looks, second_look
from offline.evaluation.self_consistency import self_consistency
from offline.evaluation.text_probes import text_router
from offline.policy_search import SIMPLEST_FIRST, Table, Target, accuracy_table, meeting, simplest
from routing_policies.base import FloatArray

TEXT = {"length": "length probes", "tfidf": "TF-IDF probes"}
ENOUGH_ANSWERS = 64
"""With as many per problem, the limit is near to what true rates allow."""


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
    looks: tuple[Looks, Looks] | None = None,
    on_step: Callable[[str], None] = lambda what: None,
) -> Evaluation:
    """
    Args:
        train: what text probes are fitted on; None leaves them out.
        looks: at an arm's answers to the validation and the test problems; None leaves that cascade out.
        on_step: called with what is measured next.

    Raises:
        DataError: the best single arm costs nothing, so that nothing can be saved.
        PolicyError: a probability or cost is NaN.
    """
    trial = Trial(
        test.samples, test.known, weights(len(test.samples.usd), ask.draws, ask.seed), validation.known.best_arm
    )
    if not test.samples.usd[:, trial.best_arm].any():
        raise DataError(
            f"always {trial.arms[trial.best_arm]} costs nothing by the configured prices, so nothing can be saved: set "
            "usd_per_million_tokens of its model"
        )
    table = accuracy_table(validation.known)
    router_name = _router(validation.known, ask, table)
    routers: dict[str, policies.Judged] = {}
    for name in dict.fromkeys((*policies.possible(ask.policies, test.known.tier_cost), router_name)):
        on_step(policies.LABELS[name])
        routers[name] = policies.run(name, validation.known, trial, ask.target, table, ask.seed)
    router = routers[router_name]

    texts: dict[str, policies.Judged] = {}
    for kind in ask.texts if train is not None else ():
        on_step(TEXT[kind])
        assert train is not None
        texts[kind] = _text(kind, train, validation, test, trial, ask)

    on_step("controls")
    singles = controls.singles(trial)
    shuffled = controls.shuffled(trial, router)
    random = [controls.random(trial), controls.mixture(trial, validation.known, router.validation_usd)]
    on_step("self-consistency")
    voting = self_consistency(trial, validation.samples, ask.target)
    looking = None
    if looks is not None:
        on_step("second look")
        looking = second_look(trial, validation.known, validation.samples, looks, ask.target)
    on_step("oracles")
    limit = oracles.limit(trial, ask.seed) if fewest_answers(trial) >= 2 else None
    bounds = [oracles.in_sample(trial), oracles.research(trial)]

    text_methods = [one.method for one in texts.values()]
    methods = [one.method for one in routers.values()] + singles + random + [shuffled] + text_methods
    return Evaluation(
        methods=methods + [one for one in (voting, looking, limit) if one is not None] + bounds,
        scale=Scale(trial, singles, limit),
        router=router.method,
        rivals=_rivals(router.method, singles, shuffled, texts),
        notes=_left_out(trial, train, voting),
    )


def fewest_answers(trial: Trial) -> int:
    """Per problem, of any arm."""
    return min(arm.k for arm in trial.samples.arms)


def _text(kind: str, train: Samples, validation: Known, test: Known, trial: Trial, ask: Ask) -> policies.Judged:
    """Probes of text, by the policy that suits them best."""
    costs = validation.known, test.known
    chosen_on, judged_on = text_router(kind, train, validation.samples, test.samples, costs, ask.seed)
    table = accuracy_table(chosen_on)
    policy = _router(chosen_on, ask, table)
    called: policies.Called = (kind, f"{TEXT[kind]}, {policies.LABELS[policy]}", "baseline")
    return policies.run(policy, chosen_on, trial, ask.target, table, ask.seed, judged_on, called)


def _rivals(
    router: Method, singles: list[Method], shuffled: Method, texts: dict[str, policies.Judged]
) -> dict[str, FloatArray]:
    """How accurate mixtures of what knows less are at the router's cost: by name, (1 + draws,) each.

    Of text probes, those settings are mixed that validation problems call best at some cost.
    """
    usd = router.cost_usd[:, router.chosen]
    alone = (
        np.concatenate([one.cost_usd for one in singles], axis=1),
        np.concatenate([one.accuracy for one in singles], axis=1),
    )
    rivals = {
        "shuffled": frontier(shuffled.cost_usd, shuffled.accuracy).accuracy_at(usd),
        "random_mixture": frontier(*alone).accuracy_at(usd),
    }
    for kind, text in texts.items():
        corners = text.corners
        rivals[kind] = frontier(text.method.cost_usd[:, corners], text.method.accuracy[:, corners]).accuracy_at(usd)
    return rivals


def _left_out(trial: Trial, train: Samples | None, voting: Method | None) -> list[str]:
    """What could not be measured, and why."""
    notes, k = [], fewest_answers(trial)
    if train is None:
        notes.append("There are no train problems, so routing by length and TF-IDF is left out.")
    if voting is None:
        notes.append(
            "Self-consistency is left out: no arm cheaper than the best one has two answers per problem to compare."
        )
    if k < 2:
        notes.append("One answer per problem tells no success rate, so there is no limit to have a share of.")
    elif k < ENOUGH_ANSWERS:
        notes.append(
            f"The limit chooses by {k // 2} answers per problem and arm, so it understates what true rates would allow."
        )
    return notes


def _router(data: Validation, ask: Ask, table: Table) -> str:
    """The policy that `pika tune` chooses; the simplest where none reaches the target."""
    names = [name for name in SIMPLEST_FIRST if name in ask.policies] or list(SIMPLEST_FIRST)
    found = meeting(data, ask.target, names, table)
    return found[simplest(found, data, ask.target.measure)][0].policy if found else names[0]
