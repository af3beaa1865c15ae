"""Scores prompts in this process: one truncated forward pass per pass, then the heads. Torch comes with the first pass
that a probe reads activations of; probes that read text alone need none."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np

from probes.artifact import Artifact, distinct_passes
from probes.base import FloatArray, Inputs, ProbeError
from probes.engine import heads
from probes.engine.base import Prompt, Scores
from probes.prompt import Messages, Renderer, conversation_text
from probes.token_readout import TokenReadout

if TYPE_CHECKING:
    from probes.engine.probe_model import ProbeModel
    from probes.engine.reading import Reading


class LocalEngine:
    """Loads the probe models of some artifacts, each pass once.

    Raises:
        ProbeError: a probe model cannot be loaded, or does not fit a probe.
    """

    def __init__(self, artifacts: Sequence[Artifact], device: str = "auto") -> None:
        self.artifacts = tuple(artifacts)
        self.passes = distinct_passes(artifacts)
        self._readers: dict[int | None, list[int]] = defaultdict(list)
        """Indices of the probes by their pass's index; None: no pass."""
        for index, artifact in enumerate(self.artifacts):
            self._readers[None if artifact.pass_ is None else self.passes.index(artifact.pass_)].append(index)
        self._renderers: list[Renderer] | None = None
        self._models = [self._model(i, device) for i in range(len(self.passes))]

    def score(self, prompts: Sequence[Prompt], *, partial: bool = False) -> Scores:
        """All that the probes tell of n prompts, in the artifacts' order.

        Args:
            partial: an activation that is not a finite number is no error; the prompt's success is NaN.

        Raises:
            ProbeError: an activation is not a finite number.
        """
        shape = (len(prompts), len(self.artifacts))
        scores = Scores(np.empty(shape), np.empty(shape), np.empty(shape))
        for pass_, readers in self._readers.items():
            artifacts = [self.artifacts[index] for index in readers]
            of_pass = heads.scores(artifacts, self._inputs(pass_, prompts), partial=partial)
            for field in fields(Scores):
                getattr(scores, field.name)[:, readers] = getattr(of_pass, field.name)
        return scores

    @property
    def padding_tokens(self) -> int:
        """Computed for nothing so far, by all passes."""
        return sum(model.padding_tokens for model in self._models if model is not None)

    @property
    def reused_tokens(self) -> int:
        """Not computed so far, since earlier prompts begin with them, by all passes."""
        return sum(model.reused_tokens for model in self._models if model is not None)

    def render(self, conversations: Sequence[Messages | str]) -> list[Prompt]:
        """Conversations, or texts that stand for one user turn each, as `score` takes them."""
        if self._renderers is None:
            self._renderers = [Renderer(pass_) for pass_ in self.passes]
        prompts = []
        for conversation in conversations:
            one: Messages = (
                [{"role": "user", "content": conversation}] if isinstance(conversation, str) else conversation
            )
            token_ids = tuple(renderer.render(one).token_ids for renderer in self._renderers)
            prompts.append(Prompt(token_ids, conversation_text(one)))
        return prompts

    def raw(self, prompts: Sequence[Prompt]) -> FloatArray:
        """Uncalibrated outputs of n prompts, in the artifacts' order: (n, probes).

        Raises:
            ProbeError: an activation is not a finite number.
        """
        raw = np.empty((len(prompts), len(self.artifacts)))
        for pass_, readers in self._readers.items():
            artifacts = [self.artifacts[index] for index in readers]
            raw[:, readers] = heads.raw(artifacts, self._inputs(pass_, prompts))
        return raw

    def _inputs(self, pass_: int | None, prompts: Sequence[Prompt]) -> Inputs:
        if pass_ is None:
            return Inputs(texts=[prompt.text for prompt in prompts])
        token_ids = [prompt.token_ids[pass_] for prompt in prompts]
        model = self._models[pass_]
        return (
            Inputs(prompt_tokens=np.array([len(ids) for ids in token_ids])) if model is None else model.read(token_ids)
        )

    def _model(self, pass_: int, device: str) -> "ProbeModel | None":
        """The probe model of a pass; None where only prompts' lengths are read."""
        artifacts = [self.artifacts[index] for index in self._readers[pass_]]
        if all(artifact.probe.site is None for artifact in artifacts):
            return None
        from probes.engine.probe_model import ProbeModel

        model = ProbeModel(self.passes[pass_], _reading(artifacts), device, reuse_prefixes=True)
        for artifact in artifacts:
            if artifact.card.d_model not in (None, model.d_model):
                raise ProbeError(
                    f"{artifact.folder}: the probe reads {artifact.card.d_model} dimensions, its probe model "
                    f"{self.passes[pass_].probe_model} has {model.d_model}: train the probe anew with `pika train`"
                )
        return model


def _reading(artifacts: Sequence[Artifact]) -> "Reading":
    from probes.engine.reading import Reading

    sites = dict.fromkeys(site for artifact in artifacts for site in heads.sites(artifact) if site.position is not None)
    return Reading(
        tuple(sites),
        pooled=tuple(artifact.probe for artifact in artifacts if isinstance(artifact.probe, TokenReadout)),
        next_token=any(artifact.probe.next_token for artifact in artifacts),
    )
