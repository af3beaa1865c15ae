"""Attention for prompts packed side by side: each sees itself alone, after the keys and values of its prefix.

Masks of the whole row, as Transformers builds them, go wrong in some architectures when the row holds several prompts.
Here no mask spans two prompts; windows, caps and sinks are as the architecture's own code passes them.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from probes.engine.attention_alone import Attention, attend_alone
from probes.engine.attention_together import attend_together
from probes.engine.packing import Packing

PACKED = "pika-packed"
"""The name by which Transformers calls `transformers_attention`. It has no masks of that name, so it makes none."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, packing: Packing, block: int, how: Attention, tail: int | None = None
) -> Tensor:
    """Causal attention within each prompt.

    Args:
        query: (heads, queries, head_dim), all tokens of every prompt, or the last `tail` of each.
        key, value: (kv_heads, tokens, head_dim)

    Returns: (queries, heads, head_dim)
    """
    if packing.keep is not None:
        packing.keep.keys.append(key.clone())
        packing.keep.values.append(value.clone())
    asked = packing.asked(tail)
    key, value = packing.with_prefixes(key, value, block)
    if query.is_cuda:
        return attend_together(query, key, value, asked, packing.keys, how)
    keys, values = (torch.split(x, packing.keys.lengths, dim=1) for x in (key, value))
    prompts = zip(torch.split(query, asked.lengths, dim=1), keys, values, strict=True)
    return torch.cat([piece for prompt in prompts for piece in attend_alone(*prompt, packing, how)])


def transformers_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    packing: Packing,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`attend` as Transformers' modules call it: (1, heads, tokens, head_dim) to (1, tokens, heads, head_dim)."""
    block: int = module.layer_idx  # type: ignore[assignment]  # every attention module of Transformers has it
    how = Attention(scaling, sliding_window, softcap, s_aux)
    return attend(query[0], key[0], value[0], packing, block, how)[None], None


AttentionInterface.register(PACKED, transformers_attention)
