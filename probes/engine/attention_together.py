"""Causal attention of all prompts of a row at once: to start a kernel on a GPU takes as long as a prompt's attention.

Queries are (heads, queries, head_dim); keys and values (kv_heads, keys, head_dim), each prompt's after its prefix's;
what is returned (queries, heads, head_dim).
"""

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import AuxRequest, varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from probes.engine.attention_alone import Attention, by_hand
from probes.engine.packing import Rows

# The kernel of torch 2.11 groups heads unasked.
GROUPED: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}


def attend_together(query: Tensor, key: Tensor, value: Tensor, asked: Rows, keys: Rows, how: Attention) -> Tensor:
    """
    Args:
        asked: where each prompt's queries stand.
        keys: where its keys stand.
    """
    if query.dtype == torch.float32 or how.softcap is not None:
        return side_by_side(query, key, value, asked, keys, how)
    return _variable_length(query, key, value, asked, keys, how)


def _variable_length(query: Tensor, key: Tensor, value: Tensor, asked: Rows, keys: Rows, how: Attention) -> Tensor:
    """By torch's kernel for prompts of any lengths, which knows half precision alone and no caps."""
    found, denominator = varlen_attn(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        asked.bounds,
        keys.bounds,
        asked.longest,
        keys.longest,
        return_aux=AuxRequest(lse=True),
        scale=how.scaling,
        window_size=(-1 if how.window is None else how.window - 1, 0),
        **GROUPED,
    )  # the softmax's, as a logarithm: (heads, queries)
    if how.sinks is None:
        return found
    share = torch.sigmoid(denominator - how.sinks.float()[:, None])  # what the sink leaves of it
    return found * share.t()[:, :, None].to(found.dtype)


def side_by_side(query: Tensor, key: Tensor, value: Tensor, asked: Rows, keys: Rows, how: Attention) -> Tensor:
    """Each prompt filled up to the longest."""
    group = len(query) // len(key)
    queries = query[:, asked.side_by_side].transpose(0, 1)  # (batch, heads, longest, head_dim)
    key, value = (x[:, keys.side_by_side].transpose(0, 1).repeat_interleave(group, dim=1) for x in (key, value))
    # Where all tokens are queries, all that is ahead of a prompt's last one is what it was filled up with.
    causal = how.plain and how.window is None and asked.lengths == keys.lengths
    mask = None if causal else _mask(asked, keys, how.window)
    if how.plain:
        found = scaled_dot_product_attention(queries, key, value, attn_mask=mask, is_causal=causal, scale=how.scaling)
    else:
        found = by_hand(queries, key, value, mask, how)
    return found.transpose(1, 2).flatten(0, 1)[asked.among_these]


def _mask(asked: Rows, keys: Rows, window: int | None) -> Tensor:
    """Which keys a query sees, (batch, 1, queries, keys)."""
    lengths = [rows.ends - rows.starts for rows in (asked, keys)]
    own = torch.arange(asked.longest, device=asked.device) + (lengths[1] - lengths[0])[:, None]  # (batch, queries)
    ahead = own[:, :, None] - torch.arange(keys.longest, device=keys.device)
    seen = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
    return seen[:, None]
