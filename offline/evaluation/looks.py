"""What an arm's answers look like to its own model, when they are there: a linear probe on the activations at their
ends, how likely the model finds their tokens, and what was known before, weighed by logistic regression.

The probe is fitted and chosen on train problems, the weights on validation problems, where each fold is judged by
weights from the others: no answer helped to fit what is said of it.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offline.activations import harvest
from offline.evaluate import DataError, read_rollouts
from offline.evaluation.likelihood import likelihood
from offline.evaluation.samples import Samples
from offline.evaluation.second_look import Looks
from probes.base import Examples, load
from probes.card import Pass, Site
from probes.engine.loading import n_layers
from probes.engine.reading import Reading
from probes.logistic import fit_logistic, sigmoid
from probes.prompt import Renderer, new_pass
from routing_policies.base import FloatArray
from server.config import Settings

COLUMNS = ("arm", "split", "problem_id", "formatted_prompt", "generated_solutions")
TRAIN_ANSWERS = 4
"""Of each train problem, that the probe is fitted or chosen on."""
CHOOSING = 0.25
"""Share of the train problems that choose the probe's site and strength; the others fit it."""
ALPHA = 1.0
FOLDS = 5
LEAST = 1e-4
"""What a probability is taken for at least, and its complement."""
POSITIONS = (-3, -2, -1)
"""From the answer's end, its end token left out."""


def look(
    files: tuple[Path, Path],
    samples: tuple[Samples, Samples, Samples],
    prior: tuple[FloatArray, FloatArray],
    splits: tuple[str, str],
    arm: int,
    settings: Settings,
    seed: int,
    cache: Path,
) -> tuple[Looks, Looks]:
    """Of all answers to each validation and each test problem.

    Args:
        files: rollouts with the train and validation problems, and with the test problems.
        samples: of the train, validation and test problems.
        prior: success probabilities of the arm before it answers, for the validation and the test problems, (n,) each.
        splits: what the validation and the test split are called.
        arm: whose answers are looked at, and whose model looks.
        cache: where activations are kept.

    Raises:
        DataError: a file lacks the answers' texts.
        ProbeError: the arm's model cannot be loaded, or its answers are all right or all wrong.
    """
    name = samples[0].arms[arm].name
    model = settings.models[settings.arms[name].model]
    pass_ = new_pass(settings.model_source(model.model))
    counts = [each.arms[arm].k for each in samples]
    counts[0] = min(counts[0], TRAIN_ANSWERS)
    correct = [each.arms[arm].correct[:, :k] for each, k in zip(samples, counts, strict=True)]  # (n, k) each
    texts = [
        _texts(file, split, name, each.outcomes.problem_ids, k)
        for file, split, each, k in zip((files[0], *files), ("train", *splits), samples, counts, strict=True)
    ]
    seen = iter(_seen(pass_, texts, correct[0], settings.engine.device, seed, cache))
    features = [
        _features(np.repeat(p, k), *next(seen)).reshape(len(p), k, -1) for p, k in zip(prior, counts[1:], strict=True)
    ]
    price = model.usd_per_million_tokens.input / 1e6
    success = _cross_fitted(features[0], correct[1], seed), _weighed(features[1], _weights(features[0], correct[1]))
    usd = (price * each.arms[arm].output_tokens for each in samples[1:])
    before, now = (Looks(arm, p, cost) for p, cost in zip(success, usd, strict=True))
    return before, now


Text = tuple[str, str]
"""Prompt and answer."""


def _seen(
    pass_: Pass, texts: Sequence[Sequence[Text]], labels: FloatArray, device: str, seed: int, cache: Path
) -> list[tuple[FloatArray, FloatArray]]:
    """Of the validation and the test answers: what the probe says of their ends, (answers,), and `likelihood`.

    Args:
        texts: of the train, validation and test answers, problem by problem.
        labels: whether the train answers are right, (n, k).
    """
    renderer = Renderer(pass_)
    distinct = {text: i for i, text in enumerate(dict.fromkeys(text for of in texts for text in of))}
    ids = [renderer.tokenize(prompt + answer) for prompt, answer in distinct]
    starts = [
        min(len(renderer.tokenize(prompt)), len(text) - 1) for (prompt, _), text in zip(distinct, ids, strict=True)
    ]
    sites = tuple(Site(layer=layer, position=at) for layer in range(n_layers(pass_) + 1) for at in POSITIONS)
    ends = harvest(pass_, ids, Reading(sites), device, cache)
    train, *others = (np.array([distinct[text] for text in of]) for of in texts)
    examples = Examples(ends.rows(train), labels.reshape(-1, 1))
    fitting = round((1 - CHOOSING) * len(labels)) * labels.shape[1]
    halves = examples.rows(slice(0, fitting)), examples.rows(slice(fitting, None))
    (fit,) = load("linear_eoi").fit(*halves, "classification", seed=seed)
    likely = likelihood(pass_, ids, starts, device)
    return [(fit.probe.raw(ends.rows(rows)), likely[rows]) for rows in others]


def _features(prior: FloatArray, raw: FloatArray, likely: FloatArray) -> FloatArray:
    """What was known before the answer and what it shows, together: (n,), (n,), (n, 5) -> (n, 8)."""
    p = prior.clip(LEAST, 1 - LEAST)
    return np.column_stack([np.log(p / (1 - p)), raw, likely, np.ones(len(p))])


def _weights(features: FloatArray, correct: FloatArray) -> FloatArray:
    """(n, k, f), (n, k) -> (f,)"""
    f = features.shape[-1]
    return fit_logistic(features.reshape(-1, f), correct.ravel(), ALPHA, np.zeros(f))


def _weighed(features: FloatArray, weights: FloatArray) -> FloatArray:
    """Probabilities of being right: (n, k, f), (f,) -> (n, k)."""
    return sigmoid(features @ weights)


def _cross_fitted(features: FloatArray, correct: FloatArray, seed: int) -> FloatArray:
    """The same, each problem by weights from other problems."""
    success = np.empty(correct.shape)
    for fold in np.array_split(np.random.default_rng(seed).permutation(len(correct)), FOLDS):
        others = np.setdiff1d(np.arange(len(correct)), fold)
        success[fold] = _weighed(features[fold], _weights(features[others], correct[others]))
    return success


def _texts(file: Path, split: str, arm: str, problem_ids: Sequence[str], answers: int) -> list[Text]:
    """The first answers to each problem, one after the other."""
    frame, _ = read_rollouts(file, COLUMNS)
    rows = frame[(frame["split"] == split) & (frame["arm"] == arm)].set_index("problem_id").loc[list(problem_ids)]
    if any(len(solutions) < answers for solutions in rows["generated_solutions"]):
        raise DataError(f"{file} lacks the texts of {arm}'s answers, which are to be looked at: sample them anew")
    pairs = zip(rows["formatted_prompt"], rows["generated_solutions"], strict=True)
    return [(prompt, solution) for prompt, solutions in pairs for solution in solutions[:answers]]
