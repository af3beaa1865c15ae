"""From messages to each arm's success probability: renders and tokenises here, scores in the engine."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from probes.artifact import distinct_passes
from probes.base import FloatArray
from probes.engine.base import Engine, Prompt
from probes.prompt import Renderer, conversation_text, has_more_than_text, text_of, was_cut
from server.config import Settings, prefill_usd_per_token
from server.pool import Pool

logger = logging.getLogger(__name__)

Messages = Sequence[Mapping[str, Any]]

OUT_OF_DISTRIBUTION = "out-of-distribution"
INLINE_CHARACTERS = 4096
"""What is tokenised on the event loop at most, by all passes together, in some 2 ms: for most conversations, a thread's
hop would cost more."""
PIECE_CHARACTERS = 32
"""What a message, or a part of its content, counts beside its text: templates take time for empty ones too."""


@dataclass(slots=True)
class Prediction:
    """What is known of one conversation before it is sent anywhere. Nobody changes it."""

    success: FloatArray
    """Success probability per arm, (k,); NaN where the prompt was not scored."""
    output_tokens: FloatArray
    """Expected output tokens per arm, (k,); NaN where no output-token head says."""
    activation_percentile: FloatArray
    """Per arm, (k,), see `Scores`; NaN where no statistics say."""
    prompt_tokens: tuple[int | None, ...]
    """Per arm, as its probe model counts; None for an arm without a probe."""
    flags: tuple[str, ...]
    prefill_usd: float
    """What the probe models' prefill of this prompt costs."""
    looks: int = 1
    """How many passes' activations were compared with the training prompts'."""
    percentile: float | None = field(init=False)
    """How unlike the training prompts this one is: the highest of the arms' activation percentiles, less what the
    highest of several passes' would be anyway.

    Source: Šidák, "Rectangular confidence regions for the means of multivariate normal distributions", 1967. Of known
    prompts p percent lie below p, as with one pass, if passes err independently; no fewer if they agree.
    """

    def __post_init__(self) -> None:
        known = self.activation_percentile[~np.isnan(self.activation_percentile)]
        self.percentile = 100.0 * (float(known.max()) / 100.0) ** self.looks if len(known) else None


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
        self.inline_characters = INLINE_CHARACTERS // max(1, len(self.passes))
        self.reads_text = any(artifact.probe.reads == "text" for artifact in pool.artifacts)
        self.mismatches = pool.mismatches
        self.looks = len(distinct_passes(one for one in pool.artifacts if one.card.statistics is not None))
        self.odd = settings.out_of_distribution
        self.arm_pass = tuple(
            None if arm.artifact is None or arm.artifact.pass_ is None else self.passes.index(arm.artifact.pass_)
            for arm in pool.arms
        )
        self.constants = np.array(
            [np.nan if arm.success_probability is None else arm.success_probability for arm in pool.arms]
        )
        nothing = np.full_like(self.constants, np.nan)
        tokens = (None,) * len(self.constants)
        self.unknown = Prediction(self.constants, nothing, nothing, tokens, self.mismatches, 0.0)
        """Of a prompt that was not even rendered."""
        self.probed = np.array([arm.artifact is not None for arm in pool.arms])
        computed = [one.pass_ for one in pool.artifacts if one.probe.site is not None]
        self.pass_usd_per_token = tuple(
            _prefill_price(pass_.probe_model, settings) if pass_ in computed else 0.0 for pass_ in self.passes
        )
        self.deadline_s = settings.engine.deadline_ms / 1000
        self._turn = asyncio.Lock()

    async def render(self, messages: Messages) -> Rendered:
        """Token ids for every pass."""
        if _is_short(messages, self.inline_characters):
            return self._render(messages)
        return await asyncio.to_thread(self._render, messages)

    async def render_in_turn(self, messages: Messages) -> Rendered:
        """As `render`, once in a round of the event loop: conversations that come by the dozen hold nobody else up."""
        async with self._turn:
            await asyncio.sleep(0)
        return await self.render(messages)

    def _render(self, messages: Messages) -> Rendered:
        rendered = [renderer.render(messages) for renderer in self.renderers]
        text = conversation_text(messages) if self.reads_text else ""
        flags = [flag for one in rendered for flag in one.flags] + ["truncated"] * was_cut(text)
        if has_more_than_text(messages):
            flags.append("text-only")
        return Rendered(
            prompt=Prompt(tuple(one.token_ids for one in rendered), text),
            prompt_tokens=tuple(None if i is None else rendered[i].prompt_tokens for i in self.arm_pass),
            flags=(*dict.fromkeys(flags), *self.mismatches),
            prefill_usd=sum(
                len(one.token_ids) * price for one, price in zip(rendered, self.pass_usd_per_token, strict=True)
            ),
        )

    def unscored(self, rendered: Rendered | None) -> Prediction:
        """What is known without the engine: constants, and the length where the prompt was rendered."""
        if rendered is None:
            return self.unknown
        unknown = np.full_like(self.constants, np.nan)
        return Prediction(self.constants, unknown, unknown, rendered.prompt_tokens, rendered.flags, 0.0)

    async def score(self, rendered: Sequence[Rendered], engine: Engine | None) -> list[Prediction]:
        """Success probabilities of n rendered conversations.

        Raises:
            EngineUnavailableError: the engine did not answer in time, is full, or is down.
        """
        success = np.tile(self.constants, (len(rendered), 1))  # (n, k)
        output_tokens, percentile = np.full_like(success, np.nan), np.full_like(success, np.nan)
        if engine is not None:
            deadline = asyncio.get_running_loop().time() + self.deadline_s
            scores = await engine.score([one.prompt for one in rendered], deadline)
            success[:, self.probed] = scores.success
            output_tokens[:, self.probed] = scores.output_tokens
            percentile[:, self.probed] = scores.activation_percentile
        predictions = [
            Prediction(
                success=success[i],
                output_tokens=output_tokens[i],
                activation_percentile=percentile[i],
                prompt_tokens=one.prompt_tokens,
                flags=one.flags,
                prefill_usd=one.prefill_usd,
                looks=self.looks,
            )
            for i, one in enumerate(rendered)
        ]
        return [self._flagged(prediction) for prediction in predictions]

    def _flagged(self, prediction: Prediction) -> Prediction:
        if not self.out_of_distribution(prediction) or self.odd.action == "none":
            return prediction
        return replace(prediction, flags=(*prediction.flags, OUT_OF_DISTRIBUTION))

    def out_of_distribution(self, prediction: Prediction) -> bool:
        """Whether the prompt is unlike those that the probes were trained on."""
        return prediction.percentile is not None and prediction.percentile > self.odd.percentile


def _prefill_price(probe_model: str, settings: Settings) -> float:
    price = prefill_usd_per_token(settings, probe_model)
    if price is None:
        logger.warning("the prefill of %s is charged at 0: set engine.usd_per_million_tokens", probe_model)
    return price or 0.0


def _is_short(messages: Messages, characters: int) -> bool:
    """Whether all that is read of them, roles included, is at most so many characters. Looks no further than that."""
    left = characters
    for message in messages:
        content = message.get("content")
        parts = len(content) if isinstance(content, list) else 0
        left -= PIECE_CHARACTERS * (1 + parts) + len(str(message.get("role")))
        if left < 0:
            return False
        left -= len(text_of(content))
    return left >= 0
