"""Attention for prompts packed side by side: each sees itself alone, after the keys and values of its prefix.

Masks of the whole row, as Transformers builds them, go wrong in some architectures when the row holds several prompts.
Here no mask spans two prompts; windows, caps and sinks are as the architecture's own code passes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention, softmax
from transformers import AttentionInterface

PACKED = "pika-packed"
"""The name by which Transformers calls `transformers_attention`. It has no masks of that name, so it makes none."""


BLOCK = 64
IN_BLOCKS = range(192, 768)
"""Tokens of prompts that `_in_blocks` is faster for than torch's own kernel on a CPU, by a tenth to a quarter."""


@dataclass(frozen=True)
class Prefix:
    """Tokens with which prompts begin, and what attention needs of them."""

    token_ids: tuple[int, ...]
    keys: list[Tensor] = field(default_factory=list)
    """By block, (kv_heads, tokens, head_dim), rotated."""
    values: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """What is computed of one prompt."""

    token_ids: Sequence[int]
    """The prompt's last tokens; all of them without a prefix."""
    prefix: Prefix | None = None
    reused: int = 0
    """How many tokens of the prefix come before them."""


class Packing:
    """Prompts in one row, and the masks that its blocks share.

    Args:
        keep: gets the keys and values of the row, which then is one prompt.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device, keep: Prefix | None = None) -> None:
        self.spans = spans
        self.lengths = [len(span.token_ids) for span in spans]
        self.keep = keep
        self._device = device
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}

    def row(self) -> tuple[Tensor, Tensor]:
        """Token ids and positions, (tokens,) each."""
        token_ids = torch.tensor([token for span in self.spans for token in span.token_ids])
        positions = [torch.arange(s.reused, s.reused + n) for s, n in zip(self.spans, self.lengths, strict=True)]
        return token_ids.to(self._device), torch.cat(positions).to(self._device)

    def asked(self, tail: int | None) -> list[int]:
        """How many tokens of every prompt are queries, if only the last `tail` of each are."""
        return self.lengths if tail is None else [min(tail, length) for length in self.lengths]

    @cached_property
    def ahead(self) -> Tensor:
        """What is added to a block's own logits, (BLOCK, BLOCK): -inf for keys ahead of their query."""
        return torch.full((BLOCK, BLOCK), -torch.inf, device=self._device).triu(1)

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor | None:
        """Which keys the last queries see, (queries, keys); None: all."""
        if queries == 1 and (window is None or window >= keys):
            return None
        key = (queries, keys, window)
        if key not in self._masks:
            at = torch.arange(keys - queries, keys, device=self._device)[:, None]
            ahead = at - torch.arange(keys, device=self._device)
            self._masks[key] = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
        return self._masks[key]


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    block: int,
    *,
    scaling: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    tail: int | None = None,
) -> Tensor:
    """Causal attention within each prompt.

    Args:
        query: (heads, queries, head_dim), all tokens of every prompt, or the last `tail` of each.
        key, value: (kv_heads, tokens, head_dim)
        window: tokens that a token sees, itself included; None: all before it.
        softcap: logits are squeezed between -softcap and softcap.
        sinks: (heads,), a logit beside those of the keys that takes its share of the softmax and gives nothing.

    Returns: (queries, heads, head_dim)
    """
    if packing.keep is not None:
        packing.keep.keys.append(key.clone())
        packing.keep.values.append(value.clone())
    if len(packing.lengths) == 1 and packing.spans[0].prefix is None and not query.is_cuda:
        return _one(query, key, value, packing, scaling, window, softcap, sinks)
    asked = packing.asked(tail)
    keys, values = [], []
    own = zip(torch.split(key, packing.lengths, dim=1), torch.split(value, packing.lengths, dim=1), strict=True)
    for span, (own_key, own_value) in zip(packing.spans, own, strict=True):
        if span.prefix is not None:
            own_key = torch.cat([span.prefix.keys[block][:, : span.reused], own_key], dim=1)
            own_value = torch.cat([span.prefix.values[block][:, : span.reused], own_value], dim=1)
        keys.append(own_key)
        values.append(own_value)
    if query.is_cuda and query.dtype != torch.float32 and softcap is None and sinks is None:
        return _variable_length(query, keys, values, asked, scaling, window)
    return torch.cat(
        [
            _one(*one, packing, scaling, window, softcap, sinks)
            for one in zip(torch.split(query, asked, dim=1), keys, values, strict=True)
        ]
    )


def _one(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    scaling: float,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """One prompt's, (queries, heads, head_dim)."""
    heads, queries, _ = query.shape
    n = key.shape[1]
    if window is not None and window >= n:
        window = None
    grouped = heads != key.shape[0]
    if softcap is None and sinks is None:
        causal = queries == n and window is None
        if causal and n in IN_BLOCKS and query.device.type == "cpu" and query.dtype == torch.float32:
            return _in_blocks(query, key, value, packing, scaling)
        mask = None if causal else packing.mask(queries, n, window)
        return scaled_dot_product_attention(
            query[None], key[None], value[None], attn_mask=mask, is_causal=causal, scale=scaling, enable_gqa=grouped
        )[0].transpose(0, 1)
    if grouped:
        key, value = (x.repeat_interleave(heads // x.shape[0], dim=0) for x in (key, value))
    logits = (query @ key.transpose(1, 2)) * scaling  # (heads, queries, keys)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    mask = packing.mask(queries, n, window)
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if sinks is not None:
        beside = sinks[:, None, None].expand(-1, queries, 1)
        logits = torch.cat([logits, beside.to(logits.dtype)], dim=-1)
    return (softmax(logits, dim=-1, dtype=torch.float32)[..., :n].to(value.dtype) @ value).transpose(0, 1)


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, packing: Packing, scaling: float) -> Tensor:
    """Causal attention of a whole prompt, a block of queries at a time: what lies ahead of a block is not computed.
    Returns (queries, heads, head_dim)."""
    heads, n, _ = query.shape
    if heads != key.shape[0]:
        key, value = (x.repeat_interleave(heads // x.shape[0], dim=0) for x in (key, value))
    query, key = query * scaling, key.transpose(1, 2)
    found = []
    for begin in range(0, n, BLOCK):
        end = min(n, begin + BLOCK)
        logits = query[:, begin:end] @ key[:, :, :end]  # (heads, block, keys)
        logits[:, :, begin:].add_(packing.ahead[: end - begin, : end - begin])
        found.append(softmax(logits, dim=-1) @ value[:, :end])
    return torch.cat(found, dim=1).transpose(0, 1)


def _variable_length(
    query: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    asked: Sequence[int],
    scaling: float,
    window: int | None,
) -> Tensor:
    """All prompts by one kernel of torch's, on CUDA: (queries, heads, head_dim)."""

    def ends(lengths: Sequence[int]) -> Tensor:
        return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=query.device)

    lengths = [key.shape[1] for key in keys]
    found = varlen_attn(
        query.transpose(0, 1).contiguous(),
        torch.cat(list(keys), dim=1).transpose(0, 1).contiguous(),
        torch.cat(list(values), dim=1).transpose(0, 1).contiguous(),
        ends(asked),
        ends(lengths),
        max(asked),
        max(lengths),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[0] != keys[0].shape[0],
    )
    assert isinstance(found, Tensor)
    return found


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
    found = attend(
        query[0], key[0], value[0], packing, block, scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux
    )
    return found[None], None


AttentionInterface.register(PACKED, transformers_attention)
