"""The sweep as one writes it with scikit-learn, and the research code (KabakaWilliam/llms_know_difficulty) has it."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score

from probes.base import Activations, Examples, FloatArray
from probes.card import Site, Task


def best_site(
    train: Examples, validation: Examples, arm: int, task: Task, alphas: Sequence[float], sites: Sequence[Site]
) -> tuple[Site, float]:
    """A model for every site and alpha; the first that ranks the validation problems best: (site, alpha)."""
    best, highest = (sites[0], alphas[0]), -np.inf
    y, held = train.labels[:, arm], validation.labels[:, arm]
    for site in sites:
        x, x_held = train.inputs.activations[site], validation.inputs.activations[site]
        for alpha in alphas:
            score = (_regression if task == "regression" else _classification)(x, y, x_held, held, alpha)
            if score > highest:
                best, highest = (site, alpha), score
    return best


def _regression(x: Activations, y: FloatArray, x_held: Activations, held: FloatArray, alpha: float) -> float:
    predicted = Ridge(alpha=alpha, fit_intercept=False).fit(x, y).predict(x_held)
    # Of constants a rank correlation is undefined, and SciPy warns.
    return float(spearmanr(predicted, held).statistic) if np.ptp(predicted) > 0 else float("nan")


def _classification(x: Activations, y: FloatArray, x_held: Activations, held: FloatArray, alpha: float) -> float:
    model = LogisticRegression(C=1 / alpha, fit_intercept=False, max_iter=1000).fit(x, y)
    return float(roc_auc_score(held, model.predict_proba(x_held)[:, 1]))
