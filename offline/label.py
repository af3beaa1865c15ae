"""Success probabilities of problems, as the gateway would predict them."""

from collections.abc import Sequence

import numpy as np

from probes.artifact import load_artifact
from probes.base import FloatArray
from probes.engine.base import Prompt
from probes.engine.local import LocalEngine
from probes.prompt import Renderer
from server.config import Settings


def success_probabilities(settings: Settings, problems: Sequence[str], device: str = "auto") -> FloatArray:
    """Of n problems, each asked in one user turn, for each arm of the configuration: (n, k).

    An arm without a probe has its constant.

    Raises:
        ProbeError: a probe cannot be loaded, or does not fit its probe model.
    """
    arms = list(settings.arms.values())
    constants = [np.nan if arm.success_probability is None else arm.success_probability for arm in arms]
    success = np.tile(constants, (len(problems), 1))
    artifacts = [load_artifact(settings.resolve(arm.probe)) for arm in arms if arm.probe is not None]
    if not artifacts or not len(problems):
        return success
    engine = LocalEngine(artifacts, device)
    renderers = [Renderer(pass_) for pass_ in engine.passes]
    conversations = [[{"role": "user", "content": problem}] for problem in problems]
    prompts = [
        Prompt(tuple(renderer.render(messages).token_ids for renderer in renderers)) for messages in conversations
    ]
    success[:, [arm.probe is not None for arm in arms]] = engine.score(prompts).success
    return success
