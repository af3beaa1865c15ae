"""One forward pass over several prompts, in the way that their architecture takes: lean, packed or padded."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.engine.lean import LEAN, LeanForward
from probes.engine.loading import PACKABLE
from probes.engine.packing import Ids, Packing, Prefix, Rows, Span
from probes.engine.reading import Hidden, Layer, Reading


class Forward:
    """
    Args:
        model: cut after `depth` blocks; with its LM head where next-token statistics are read.
    """

    def __init__(self, model: PreTrainedModel, reading: Reading, depth: int, device: torch.device) -> None:
        self._model: Any = model
        self._base: Any = model.base_model
        kind: str = model.config.model_type
        self._layers = set(reading.layers) | ({depth} if reading.next_token else set())
        self._depth = depth
        self._with_head = reading.next_token
        self._device = device
        deepest = max(self._layers)
        self._tail = None if deepest in (0, *reading.whole_layers) else reading.tail
        self._lean = LeanForward(self._base) if kind in LEAN else None
        self.packs = kind in PACKABLE
        """Whether prompts need no padding."""

    def __call__(self, spans: Sequence[Span], keep: Prefix | None = None) -> Hidden:
        """What the model finds of what the spans compute.

        Args:
            keep: gets the keys and values of the one prompt.
        """
        if not self.packs:
            return self._padded([span.token_ids for span in spans])
        packing = Packing(spans, self._device, keep)
        return self._packed(packing) if self._lean is None else self._lean_pass(packing, self._lean)

    def sees_ahead(self) -> bool:
        """Whether what is read of a token depends on tokens after it, which padding must not."""
        begin = [1, 2, 3]
        with torch.inference_mode():
            one, other = (self._padded([np.array([*begin, *after])]) for after in ([4, 5, 6, 4, 5, 6], [7, 8, 9] * 2))
        for layer, found in one.layers.items():
            values, expected = found.values[: len(begin)], other.layers[layer].values[: len(begin)]
            if (values - expected).norm() > torch.finfo(values.dtype).eps ** 0.5 * expected.norm():
                return True
        return False

    def _lean_pass(self, packing: Packing, forward: LeanForward) -> Hidden:
        deepest = max(self._layers)
        tail = None if packing.keep is not None else self._tail
        found = forward(packing, self._layers, tail)
        layers = {
            layer: _layer(values, packing.asked(tail) if layer == deepest else packing.rows)
            for layer, values in found.items()
        }
        if not self._with_head:
            return Hidden(layers)
        return Hidden(layers, self._model.lm_head(layers[deepest].at(-1)))

    def _packed(self, packing: Packing) -> Hidden:
        token_ids, positions = packing.row()
        ends = packing.rows.ends
        found, logits = self._transformers(
            (torch.zeros_like(ends), ends - 1), input_ids=token_ids[None], position_ids=positions[None], packing=packing
        )
        return Hidden({layer: _layer(values[0], packing.rows) for layer, values in found.items()}, logits)

    def _padded(self, prompts: Sequence[Ids]) -> Hidden:
        # Padded on the right, a causal model needs no mask: no prompt token sees what follows it.
        longest = max(map(len, prompts))
        token_ids = torch.zeros(len(prompts), longest, dtype=torch.long)  # (batch, T)
        for row, prompt in enumerate(prompts):
            token_ids[row, : len(prompt)] = torch.from_numpy(prompt)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._device)
        rows = torch.arange(len(prompts), device=self._device)
        found, logits = self._transformers((rows, lengths - 1), input_ids=token_ids.to(self._device))
        starts = rows * longest
        return Hidden(
            {layer: Layer(values.flatten(0, 1), starts, starts + lengths) for layer, values in found.items()}, logits
        )

    def _transformers(self, last: tuple[Tensor, Tensor], **inputs: Any) -> tuple[dict[int, Tensor], Tensor | None]:
        """By layer, (batch, T, d_model); and the logits of the tokens at `last`."""
        if self._with_head:
            with _last_tokens(self._model, last):
                output = self._model(**inputs, use_cache=False, output_hidden_states=True)
            return {layer: output.hidden_states[layer] for layer in self._layers}, output.logits.squeeze(1)
        last_only = self._layers == {self._depth}
        output = self._model(**inputs, use_cache=False, output_hidden_states=not last_only)
        if last_only:
            return {self._depth: output.last_hidden_state}, None
        return {layer: output.hidden_states[layer] for layer in self._layers}, None


@contextmanager
def _last_tokens(model: Any, last: tuple[Tensor, Tensor]) -> Iterator[None]:
    """Inside, the LM head is given one token of each prompt, by row and column: not logits of all tokens.

    What comes before and after it stays the architecture's own: Granite and Cohere scale logits, Gemma caps them.
    """

    def keep_last(head: nn.Module, arguments: tuple[Tensor]) -> tuple[Tensor]:
        return (arguments[0][last][:, None],)  # (batch, 1, d_model)

    hook = model.get_output_embeddings().register_forward_pre_hook(keep_last)
    try:
        yield
    finally:
        hook.remove()


def _layer(values: Tensor, rows: Rows) -> Layer:
    return Layer(values, rows.starts, rows.ends)
