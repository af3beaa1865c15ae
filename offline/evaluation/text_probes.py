"""What text alone tells: length and TF-IDF probes, fitted and calibrated as `pika train` does, on the same rollouts."""

from dataclasses import replace

import numpy as np

from offline.evaluation.judge import Validation
from offline.evaluation.samples import Samples
from probes import calibration
from probes.base import Examples, Inputs, ProbeError, load
from routing_policies.base import FloatArray


def text_router(
    kind: str, train: Samples, validation: Samples, test: Samples, known: tuple[Validation, Validation], seed: int
) -> tuple[Validation, Validation]:
    """What probes of text would know of the validation and the test problems; they pay for no prefill.

    Where nothing can be learnt of an arm, it has its mean success rate.

    Args:
        kind: `length` or `tfidf`.
        known: of the validation and the test problems, with the costs to expect.
    """
    fitting, choosing, judging = (_inputs(samples) for samples in (train, validation, test))
    success = [np.empty(samples.success_rate.shape) for samples in (validation, test)]
    for arm in range(len(test.arms)):
        labels, rate = train.success_rate[:, [arm]], validation.success_rate[:, arm]
        examples = Examples(fitting, labels), Examples(choosing, rate[:, None])
        try:
            (fit,) = load(kind).fit(*examples, "regression", seed=seed)
        except ProbeError:  # labels or texts are all alike: nothing tells one problem from another
            for predicted in success:
                predicted[:, arm] = rate.mean()
            continue
        fitted = calibration.choose(fit.held_out, rate, seed)
        success[0][:, arm] = calibration.apply(fitted, fit.held_out)
        success[1][:, arm] = calibration.apply(fitted, fit.probe.raw(judging))
    first, second = (replace(one, success=own, prefill_usd=0.0) for one, own in zip(known, success, strict=True))
    return first, second


def _inputs(samples: Samples) -> Inputs:
    """Lengths are those of the first arm's prompts, in its tokens."""
    tokens: FloatArray = samples.outcomes.input_tokens[:, 0]
    return Inputs(samples.outcomes.problems, tokens.round().astype(np.int64))
