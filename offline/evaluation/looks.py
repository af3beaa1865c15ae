"""What an arm's answers look like to its own model: a linear probe on the activations at their ends."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from offline.activations import harvest
from offline.evaluate import DataError, read_rollouts
from offline.evaluation.samples import Samples
from offline.evaluation.second_look import Looks
from probes.base import Examples, Inputs, load
from probes.card import Site
from probes.engine.probe_model import Reading, n_layers
from probes.logistic import fit_logistic, sigmoid
from probes.prompt import Renderer, new_pass
from routing_policies.base import FloatArray
from server.config import Settings

COLUMNS = ("arm", "split", "problem_id", "formatted_prompt", "generated_solutions")
TRAIN_ANSWERS = 4
"""Of each problem, that the probe is fitted on."""
ALPHA = 1.0
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
    """Of the first answer to each validation problem, and of all answers to each test problem.

    Validation answers chose the probe's layer and position and weighed it against what was known before, so there it
    flatters itself.

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
    train, validation, test = samples
    name = train.arms[arm].name
    model = settings.models[settings.arms[name].model]
    pass_ = new_pass(settings.model_source(model.model))
    renderer = Renderer(pass_)
    sites = [Site(layer=layer, position=at) for layer in range(n_layers(pass_) + 1) for at in POSITIONS]

    def read(of: Path, split: str, samples: Samples, answers: int) -> Inputs:
        """The first answers' activations, problem by problem."""
        texts = _texts(of, split, name, samples.outcomes.problem_ids, answers)
        ids = [renderer.tokenize(text) for text in texts]
        return harvest(pass_, ids, Reading(tuple(sites)), settings.engine.device, cache)

    few, every = min(TRAIN_ANSWERS, train.arms[arm].k), test.arms[arm].k
    fitting = read(files[0], "train", train, few)
    choosing, judging = read(files[0], splits[0], validation, 1), read(files[1], splits[1], test, every)
    labels = train.arms[arm].correct[:, :few].reshape(-1, 1), validation.arms[arm].correct[:, :1]
    examples = Examples(fitting, labels[0]), Examples(choosing, labels[1])
    (fit,) = load("linear_eoi").fit(*examples, "classification", seed=seed)
    seen, again = _features(prior[0], fit.held_out), _features(np.repeat(prior[1], every), fit.probe.raw(judging))
    weights = fit_logistic(seen, labels[1][:, 0], ALPHA, np.zeros(seen.shape[1]))
    price = model.usd_per_million_tokens.input / 1e6
    return (
        Looks(arm, sigmoid(seen @ weights)[:, None], price * validation.arms[arm].output_tokens[:, :1]),
        Looks(arm, sigmoid(again @ weights).reshape(-1, every), price * test.arms[arm].output_tokens),
    )


def _features(prior: FloatArray, raw: FloatArray) -> FloatArray:
    """What was known before the answer and what its end says, together: (n,), (n,) -> (n, 3)."""
    p = prior.clip(LEAST, 1 - LEAST)
    return np.stack([np.log(p / (1 - p)), raw, np.ones(len(p))], axis=1)


def _texts(file: Path, split: str, arm: str, problem_ids: Sequence[str], answers: int) -> list[str]:
    """Prompt and answer, the first answers to each problem one after the other."""
    frame, _ = read_rollouts(file, COLUMNS)
    rows = frame[(frame["split"] == split) & (frame["arm"] == arm)].set_index("problem_id").loc[list(problem_ids)]
    if any(len(solutions) < answers for solutions in rows["generated_solutions"]):
        raise DataError(f"{file} lacks the texts of {arm}'s answers, which are to be looked at: sample them anew")
    pairs = zip(rows["formatted_prompt"], rows["generated_solutions"], strict=True)
    return [prompt + solution for prompt, solutions in pairs for solution in solutions[:answers]]
