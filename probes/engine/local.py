"""Scores prompts in this process: one truncated forward pass per pass, then the heads. Torch comes with the first pass
that a probe reads activations of; probes that read text alone need none."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from probes import calibration, output_tokens, statistics
from probes.artifact import Artifact, distinct_passes
from probes.base import FloatArray, Inputs, ProbeError
from probes.card import Site
from probes.engine.base import NOT_FINITE, Prompt, Scores
from probes.prompt import Messages, Renderer, conversation_text

if TYPE_CHECKING:
    from probes.engine.probe_model import ProbeModel, Reading


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
        scores = Scores(np.empty(shape), np.full(shape, np.nan), np.full(shape, np.nan))
        for pass_, readers in self._readers.items():
            inputs = self._inputs(pass_, prompts)
            raw = self._raw(readers, inputs, partial)
            for column, index in enumerate(readers):
                artifact = self.artifacts[index]
                card, beside = artifact.card, artifact.beside
                scores.success[:, index] = calibration.apply(card.calibration, raw[:, column])
                if card.output_tokens is not None:
                    activations = inputs.activations[card.output_tokens.site]
                    scores.output_tokens[:, index] = output_tokens.predict(card.output_tokens, beside, activations)
                if card.statistics is not None:
                    activations = inputs.activations[card.statistics.site]
                    percentiles = statistics.percentile(card.statistics, beside, activations)
                    scores.activation_percentile[:, index] = percentiles
        return scores

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
            raw[:, readers] = self._raw(readers, self._inputs(pass_, prompts), partial=False)
        return raw

    def _inputs(self, pass_: int | None, prompts: Sequence[Prompt]) -> Inputs:
        if pass_ is None:
            return Inputs(texts=[prompt.text for prompt in prompts])
        token_ids = [prompt.token_ids[pass_] for prompt in prompts]
        model = self._models[pass_]
        return (
            Inputs(prompt_tokens=np.array([len(ids) for ids in token_ids])) if model is None else model.read(token_ids)
        )

    def _raw(self, readers: Sequence[int], inputs: Inputs, partial: bool) -> FloatArray:
        """(n, readers); probes of one kind and site are one product. NaN where it is not finite, if that may be."""
        raw = np.empty((_rows(inputs), len(readers)))
        alike: dict[tuple[type, Site | None], list[int]] = defaultdict(list)
        for column, index in enumerate(readers):
            probe = self.artifacts[index].probe
            alike[type(probe), probe.site].append(column)
        for columns in alike.values():
            probes = [self.artifacts[readers[column]].probe for column in columns]
            raw[:, columns] = type(probes[0]).raw_all(probes, inputs)
        finite = np.isfinite(raw)
        if not partial and not finite.all():
            raise ProbeError(NOT_FINITE)
        return np.where(finite, raw, np.nan)

    def _model(self, pass_: int, device: str) -> "ProbeModel | None":
        """The probe model of a pass; None where only prompts' lengths are read."""
        artifacts = [self.artifacts[index] for index in self._readers[pass_]]
        if all(artifact.probe.site is None for artifact in artifacts):
            return None
        from probes.engine.probe_model import ProbeModel

        model = ProbeModel(self.passes[pass_], _reading(artifacts), device)
        for artifact in artifacts:
            if artifact.card.d_model not in (None, model.d_model):
                raise ProbeError(
                    f"{artifact.folder}: the probe reads {artifact.card.d_model} dimensions, its probe model "
                    f"{self.passes[pass_].probe_model} has {model.d_model}: train the probe anew with `pika train`"
                )
        return model


def _reading(artifacts: Sequence[Artifact]) -> "Reading":
    from probes.engine.probe_model import Reading

    sites: dict[Site, None] = {}
    layers: dict[int, None] = {}
    for artifact in artifacts:
        heads = (artifact.card.output_tokens, artifact.card.statistics)
        for site in (*artifact.probe.sites, *(head.site for head in heads if head is not None)):
            if site.position is None:
                layers[site.layer] = None
            else:
                sites[site] = None
    return Reading(tuple(sites), tuple(layers), any(artifact.probe.next_token for artifact in artifacts))


def _rows(inputs: Inputs) -> int:
    return len(inputs.texts) if inputs.prompt_tokens is None else len(inputs.prompt_tokens)
