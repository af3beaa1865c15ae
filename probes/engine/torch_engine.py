"""Scores prompts in this process, with Transformers: one truncated forward pass per pass, then the heads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes import calibration
from probes.artifact import Artifact, distinct_passes
from probes.base import ProbeError
from probes.card import Site
from probes.engine.base import Prompt, Scores
from probes.engine.probe_model import ProbeModel


@dataclass(frozen=True)
class _PassHeads:
    """One pass's model, and which of the engine's probes read it, by site."""

    model: ProbeModel
    probes: dict[Site, list[int]]


class TorchEngine:
    """Loads the probe models of some artifacts, each pass once.

    Raises:
        ProbeError: a probe model cannot be loaded, or does not fit a probe.
    """

    def __init__(self, artifacts: Sequence[Artifact], device: str = "auto") -> None:
        self.artifacts = tuple(artifacts)
        self.passes = distinct_passes(artifacts)
        self._heads = []
        for pass_ in self.passes:
            probes: dict[Site, list[int]] = {}
            for index, artifact in enumerate(self.artifacts):
                if artifact.pass_ == pass_:
                    probes.setdefault(artifact.card.site, []).append(index)
            model = ProbeModel(pass_, [site.layer for site in probes], device)
            for index in (i for indices in probes.values() for i in indices):
                artifact = self.artifacts[index]
                if artifact.card.d_model != model.d_model:
                    raise ProbeError(
                        f"{artifact.folder}: the probe reads {artifact.card.d_model} dimensions, its probe model "
                        f"{pass_.probe_model} has {model.d_model}: train the probe anew with `pika train`"
                    )
            self._heads.append(_PassHeads(model, probes))

    def score(self, prompts: Sequence[Prompt]) -> Scores:
        """Calibrated success probabilities of n prompts, in the artifacts' order: (n, probes).

        Raises:
            ProbeError: an activation is not a finite number.
        """
        raw = np.empty((len(prompts), len(self.artifacts)))
        for index, heads in enumerate(self._heads):
            sites = list(heads.probes)
            activations = heads.model.activations([prompt.token_ids[index] for prompt in prompts], sites)
            for column, site in enumerate(sites):
                raw[:, heads.probes[site]] = self._raw(heads.probes[site], activations[:, column])
        if not np.isfinite(raw).all():
            raise ProbeError("activations are not finite numbers: serve the probe model in float32 or bfloat16")
        calibrated = [calibration.apply(a.card.calibration, raw[:, i]) for i, a in enumerate(self.artifacts)]
        return Scores(success=np.stack(calibrated, axis=1))

    def _raw(self, indices: list[int], activations: np.ndarray) -> np.ndarray:
        """(n, d_model) -> (n, probes of this site); probes of one kind are one product."""
        probes = [self.artifacts[index].probe for index in indices]
        if len({type(probe) for probe in probes}) == 1:
            return type(probes[0]).raw_all(probes, activations)
        return np.stack([probe.raw(activations) for probe in probes], axis=1)
