"""From what is read of prompts to what probes tell of them, wherever the probe model ran. Imports no torch."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from probes import calibration, output_tokens, statistics
from probes.artifact import Artifact
from probes.base import FloatArray, Inputs, ProbeError
from probes.card import OutputTokens, Site
from probes.engine.base import NOT_FINITE, Scores


def scores(artifacts: Sequence[Artifact], inputs: Inputs, *, partial: bool = False) -> Scores:
    """All that probes of one pass, or of none, tell of n prompts: (n, artifacts) each.

    Args:
        partial: an activation that is not a finite number is no error; the prompt's success is NaN.

    Raises:
        ProbeError: an activation is not a finite number.
    """
    success = raw(artifacts, inputs, partial=partial)
    tokens, percentiles = np.full_like(success, np.nan), np.full_like(success, np.nan)
    token_heads: dict[Site, dict[int, tuple[OutputTokens, output_tokens.Tensors]]] = defaultdict(dict)
    for column, artifact in enumerate(artifacts):
        card, beside = artifact.card, artifact.beside
        success[:, column] = calibration.apply(card.calibration, success[:, column])
        if card.output_tokens is not None:
            token_heads[card.output_tokens.site][column] = card.output_tokens, beside
        if card.statistics is not None:
            activations = inputs.activations[card.statistics.site]
            percentiles[:, column] = statistics.percentile(card.statistics, beside, activations)
    for site, alike in token_heads.items():
        tokens[:, list(alike)] = output_tokens.predict(list(alike.values()), inputs.activations[site])
    return Scores(success, tokens, percentiles)


def raw(artifacts: Sequence[Artifact], inputs: Inputs, *, partial: bool = False) -> FloatArray:
    """Uncalibrated outputs, (n, artifacts); probes of one kind and site are one product. See `scores`."""
    n = len(inputs.texts) if inputs.prompt_tokens is None else len(inputs.prompt_tokens)
    outputs = np.empty((n, len(artifacts)))
    alike: dict[tuple[type, Site | None], list[int]] = defaultdict(list)
    for column, artifact in enumerate(artifacts):
        alike[type(artifact.probe), artifact.probe.site].append(column)
    for columns in alike.values():
        probes = [artifacts[column].probe for column in columns]
        outputs[:, columns] = type(probes[0]).raw_all(probes, inputs)
    finite = np.isfinite(outputs)
    if not partial and not finite.all():
        raise ProbeError(NOT_FINITE)
    return np.where(finite, outputs, np.nan)


def sites(artifact: Artifact) -> list[Site]:
    """Where a probe and the heads beside it read activations."""
    heads = (artifact.card.output_tokens, artifact.card.statistics)
    return [*artifact.probe.sites, *(head.site for head in heads if head is not None)]
