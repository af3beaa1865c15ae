"""From messages to each arm's success probability: renders and tokenises here, scores in the engine."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probes.artifact import distinct_passes
from probes.base import FloatArray
from probes.engine.base import Engine, Prompt
from probes.prompt import Renderer
from server.config import Settings, prefill_usd_per_token
from server.pool import Pool

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]

INLINE_CHARACTERS = 4096
"""Shorter conversations are tokenised on the event loop: a thread's hop costs more than the work."""


@dataclass(frozen=True)
class Prediction:
    """What is known of one conversation before it is sent anywhere."""

    success: FloatArray
    """Success probability per arm, (k,); NaN where the prompt was not scored."""
    prompt_tokens: tuple[int | None, ...]
    """Per arm, as its probe model counts; None for an arm without a probe."""
    flags: tuple[str, ...]
    prefill_usd: float
    """What the probe models' prefill of this prompt costs."""


@dataclass(frozen=True)
class Rendered:
    prompt: Prompt
    prompt_tokens: tuple[int | None, ...]
    flags: tuple[str, ...]
    prefill_usd: float


class Predictor:
    """Renders conversations for every pass and asks the engine.

    Raises:
        ProbeError: a probe does not fit its probe model's tokenizer or template.
    """

    def __init__(self, pool: Pool, settings: Settings) -> None:
        self.passes = distinct_passes(pool.artifacts)
        self.renderers = tuple(Renderer(pass_) for pass_ in self.passes)
        self.arm_pass = tuple(
            None if arm.artifact is None or arm.artifact.pass_ is None else self.passes.index(arm.artifact.pass_)
            for arm in pool.arms
        )
        self.constants = np.array(
            [np.nan if arm.success_probability is None else arm.success_probability for arm in pool.arms]
        )
        self.probed = np.array([arm.artifact is not None for arm in pool.arms])
        self.pass_usd_per_token = tuple(_prefill_price(pass_.probe_model, settings) for pass_ in self.passes)
        self.deadline_s = settings.engine.deadline_ms / 1000

    async def render(self, messages: Messages) -> Rendered:
        """Token ids for every pass."""
        if _characters(messages) <= INLINE_CHARACTERS:
            return self._render(messages)
        return await asyncio.to_thread(self._render, messages)

    def _render(self, messages: Messages) -> Rendered:
        rendered = [renderer.render(messages) for renderer in self.renderers]
        return Rendered(
            prompt=Prompt(tuple(one.token_ids for one in rendered)),
            prompt_tokens=tuple(None if i is None else rendered[i].prompt_tokens for i in self.arm_pass),
            flags=tuple(dict.fromkeys(flag for one in rendered for flag in one.flags)),
            prefill_usd=sum(
                len(one.token_ids) * price for one, price in zip(rendered, self.pass_usd_per_token, strict=True)
            ),
        )

    def unscored(self, rendered: Rendered | None) -> Prediction:
        """What is known without the engine: constants, and the length where the prompt was rendered."""
        if rendered is None:
            return Prediction(self.constants, (None,) * len(self.constants), (), 0.0)
        return Prediction(self.constants, rendered.prompt_tokens, rendered.flags, 0.0)

    async def score(self, rendered: Sequence[Rendered], engine: Engine | None) -> list[Prediction]:
        """Success probabilities of n rendered conversations.

        Raises:
            EngineUnavailableError: the engine did not answer in time, is full, or is down.
        """
        success = np.tile(self.constants, (len(rendered), 1))  # (n, k)
        if engine is not None:
            deadline = asyncio.get_running_loop().time() + self.deadline_s
            scores = await engine.score([one.prompt for one in rendered], deadline)
            success[:, self.probed] = scores.success
        return [
            Prediction(row, one.prompt_tokens, one.flags, one.prefill_usd)
            for row, one in zip(success, rendered, strict=True)
        ]


def _prefill_price(probe_model: str, settings: Settings) -> float:
    price = prefill_usd_per_token(settings, probe_model)
    if price is None:
        logger.warning("the prefill of %s is charged at 0: set engine.usd_per_million_tokens", probe_model)
    return price or 0.0


def _characters(messages: Messages) -> int:
    return sum(len(str(message.get("content") or "")) for message in messages)
