"""Activations and labels for `pika bench training`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import offline
from probes.base import Activations, Examples, FloatArray, Inputs
from probes.card import Site, Task
from probes.logistic import sigmoid

K = 8
"""Rollouts behind a random success rate."""
TASKS: tuple[Task, Task] = ("regression", "classification")


@dataclass(frozen=True)
class Shape:
    """Of random activations."""

    train: int
    validation: int
    layers: int
    positions: int
    d_model: int

    @property
    def sites(self) -> list[Site]:
        return [
            Site(layer=layer, position=position)
            for layer in range(self.layers)
            for position in range(-self.positions, 0)
        ]


@dataclass(frozen=True)
class Data:
    train: dict[Task, Examples]
    validation: dict[Task, Examples]
    activation_bytes: int

    @classmethod
    def of(cls, activations: dict[Site, Activations], rate: FloatArray, correct: FloatArray, n_train: int) -> "Data":
        """Both labels: (n, arms) each; the first rows are for training. Arrays are not copied."""
        everything = {
            task: Examples(Inputs(activations=activations), labels)
            for task, labels in zip(TASKS, (rate, correct), strict=True)
        }
        return cls(
            {task: examples.rows(slice(0, n_train)) for task, examples in everything.items()},
            {task: examples.rows(slice(n_train, None)) for task, examples in everything.items()},
            sum(values.size * values.itemsize for values in activations.values()),
        )


def nano(train: int, validation: int) -> Data:
    """What `nano-medium` makes of running-total problems, and how the nano pool's arms answered them."""
    from offline.material import gather, plan
    from offline.training_set import read_training_set
    from probes.linear_eoi import LinearEoi

    pool = Path(offline.__file__).parent / "nano_pool"
    arms = ("nano-small", "nano-medium", "nano-large")
    data = read_training_set(pool / "rollouts.parquet", arms)
    rows = np.concatenate(
        [np.flatnonzero(data.rows("train"))[:train], np.flatnonzero(data.rows("validation"))[:validation]]
    )
    problems = [data.problems[i] for i in rows]
    found = gather(plan(problems, LinearEoi, str(pool / "nano-medium"), positions=range(-5, 0)))
    rate, correct = data.success_rate[rows], data.majority_vote_is_correct[rows]
    return Data.of(dict(found.candidates.activations), rate, correct, train)


def random(shape: Shape, seed: int, planted: Site, sites: Sequence[Site] | None = None) -> Data:
    """Normal activations of one arm's problems; the site `planted` knows something, all others nothing.

    A site's activations depend on the seed and itself alone: some `sites` of a grid are the same without the rest.
    """
    chosen = list(sites or shape.sites)
    n = shape.train + shape.validation
    values = np.empty((n, len(chosen), shape.d_model), dtype=np.float32)
    for i, site in enumerate(chosen):
        values[:, i] = _normal(shape, seed, site)
    rng = np.random.default_rng([seed, 0])
    direction = rng.normal(size=shape.d_model) * 2 / np.sqrt(shape.d_model)
    rate = rng.binomial(K, sigmoid(_normal(shape, seed, planted) @ direction))[:, None] / K
    correct = (rate > 0.5).astype(np.float64)
    return Data.of({site: values[:, i] for i, site in enumerate(chosen)}, rate, correct, shape.train)


def _normal(shape: Shape, seed: int, site: Site) -> Activations:
    assert site.position is not None
    rng = np.random.default_rng([seed, site.layer + 1, -site.position])
    return rng.standard_normal((shape.train + shape.validation, shape.d_model), dtype=np.float32)
