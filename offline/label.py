"""What the gateway would predict of problems, each asked in one user turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from probes.artifact import Artifact
from probes.base import FloatArray
from probes.engine.local import LocalEngine
from probes.prompt import Renderer
from probes.reference import load_probe
from server.config import Settings


@dataclass(frozen=True)
class Predictions:
    """Of n problems for each arm of a configuration."""

    success: FloatArray
    """Success probabilities, (n, k); an arm without a probe has its constant."""
    output_tokens: FloatArray
    """Expected output tokens, (n, k); NaN where no output-token head says."""


def load_probes(settings: Settings) -> dict[str, Artifact]:
    """The arms' probes by arm, checked.

    Raises:
        ProbeError: a probe cannot be loaded, or does not fit its probe model.
    """
    renderers: list[Renderer] = []
    return {
        name: load_probe(reference, renderers=renderers, **settings.probe_options)
        for name, reference in settings.probes.items()
    }


def predict(
    settings: Settings, artifacts: Mapping[str, Artifact], problems: Sequence[str], device: str = "auto"
) -> Predictions:
    """
    Args:
        artifacts: as `load_probes` gives them.

    Raises:
        ProbeError: a probe does not fit its probe model.
    """
    arms = settings.arms
    constants = [np.nan if arm.success_probability is None else arm.success_probability for arm in arms.values()]
    success = np.tile(constants, (len(problems), 1))
    output_tokens = np.full_like(success, np.nan)
    if artifacts and len(problems):
        probed = [name in artifacts for name in arms]
        engine = LocalEngine([artifacts[name] for name in arms if name in artifacts], device)
        scores = engine.score(engine.render(problems))
        success[:, probed], output_tokens[:, probed] = scores.success, scores.output_tokens
    return Predictions(success, output_tokens)
