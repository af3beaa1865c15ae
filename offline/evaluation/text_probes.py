"""What text alone tells: length and TF-IDF probes, fitted and calibrated as `pika train` does, on the same rollouts."""

from dataclasses import replace

import numpy as np

from offline.evaluation.judge import Validation
from offline.evaluation.samples import Samples
from probes import calibration
from probes.base import Examples, Inputs, load
from routing_policies.base import FloatArray


def text_router(
    kind: str, train: Samples, validation: Samples, test: Samples, known: tuple[Validation, Validation], seed: int
) -> tuple[Validation, Validation]:
    """What probes of text would know of the validation and the test problems; they pay for no prefill.

    Args:
        kind: `length` or `tfidf`.
        known: of the validation and the test problems, with the costs to expect.

    Raises:
        ProbeError: the texts hold nothing to fit.
    """
    fitting, choosing, judging = (_inputs(samples) for samples in (train, validation, test))
    success = [np.empty(samples.success_rate.shape) for samples in (validation, test)]
    for arm in range(len(test.arms)):
        labels = train.success_rate[:, [arm]]
        if np.ptp(labels) == 0:  # nothing to learn: what it always was
            for predicted in success:
                predicted[:, arm] = labels[0, 0]
            continue
        rate = validation.success_rate[:, arm]
        (fit,) = load(kind).fit(Examples(fitting, labels), Examples(choosing, rate[:, None]), "regression", seed=seed)
        fitted = calibration.choose(fit.held_out, rate, seed)
        success[0][:, arm] = calibration.apply(fitted, fit.held_out)
        success[1][:, arm] = calibration.apply(fitted, fit.probe.raw(judging))
    first, second = (replace(one, success=own, prefill_usd=0.0) for one, own in zip(known, success, strict=True))
    return first, second


def _inputs(samples: Samples) -> Inputs:
    """Lengths are those of the first arm's prompts, in its tokens."""
    tokens: FloatArray = samples.outcomes.input_tokens[:, 0]
    return Inputs(samples.outcomes.problems, tokens.round().astype(np.int64))
