"""Causal attention of one prompt, after the keys and values of its prefix; and how architectures attend."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention, softmax

from probes.engine.packing import Packing

IN_BLOCKS = range(96, 768)
"""Tokens of prompts that `_in_blocks` is faster for than torch's own kernel on one thread, by a tenth to a quarter. On
several it is slower: each of its steps waits for all threads."""
BLOCK = 64
"""Queries of such a prompt that attend together."""
MANY = 192
"""Queries of a head from which on torch's kernel takes 64 of them at once, not 32."""


@dataclass(frozen=True)
class Attention:
    """How the queries of a block attend."""

    scaling: float
    window: int | None = None
    """Tokens that a token sees, itself included; None: all before it."""
    softcap: float | None = None
    """Logits are squeezed between -softcap and softcap."""
    sinks: Tensor | None = None
    """(heads,), a logit beside those of the keys that takes its share of the softmax and gives nothing."""

    @property
    def plain(self) -> bool:
        return self.softcap is None and self.sinks is None


def attend_alone(query: Tensor, key: Tensor, value: Tensor, packing: Packing, how: Attention) -> list[Tensor]:
    """One prompt's last tokens.

    Args:
        query: (heads, queries, head_dim)
        key, value: (kv_heads, tokens, head_dim)

    Returns: (queries, heads, head_dim), in pieces
    """
    heads, queries, _ = query.shape
    n = key.shape[1]
    window = None if how.window is None or how.window >= n else how.window
    grouped = heads != key.shape[0]
    if how.plain:
        causal = queries == n and window is None
        by_blocks = query.device.type == "cpu" and query.dtype == torch.float32 and torch.get_num_threads() == 1
        if causal and by_blocks and n in IN_BLOCKS:
            return _in_blocks(query, key, value, how.scaling)
        if causal or queries >= MANY:
            mask = None if causal else packing.mask(queries, n, window)
            attended = scaled_dot_product_attention(
                query[None], key[None], value[None], attn_mask=mask, is_causal=causal, scale=how.scaling,
                enable_gqa=grouped,
            )  # fmt: skip
        else:  # heads that share keys as one head with more queries, of which the kernel takes more at once
            as_one = query.reshape(1, len(key), -1, query.shape[-1])
            bias = packing.bias(queries, n, window, heads // len(key), query.dtype)
            attended = scaled_dot_product_attention(as_one, key[None], value[None], attn_mask=bias, scale=how.scaling)
        return [attended.reshape(query.shape).transpose(0, 1)]
    if grouped:
        key, value = (x.repeat_interleave(heads // x.shape[0], dim=0) for x in (key, value))
    return [by_hand(query, key, value, packing.mask(queries, n, window), how).transpose(0, 1)]


def by_hand(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, how: Attention) -> Tensor:
    """With what torch's kernels lack.

    Args:
        query: (..., heads, queries, head_dim)
        key, value: (..., heads, keys, head_dim)
        mask: (..., queries, keys), which keys are seen, with one head or none; None: all.

    Returns: (..., heads, queries, head_dim)
    """
    logits = (query @ key.transpose(-1, -2)) * how.scaling  # (..., heads, queries, keys)
    if how.softcap is not None:
        logits = torch.tanh(logits / how.softcap) * how.softcap
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    if how.sinks is not None:
        beside = how.sinks[:, None, None].expand(*logits.shape[:-1], 1)
        logits = torch.cat([logits, beside.to(logits.dtype)], dim=-1)
    shares = softmax(logits, dim=-1, dtype=torch.float32)[..., : key.shape[-2]]
    return shares.to(value.dtype) @ value


def _in_blocks(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> list[Tensor]:
    """Causal attention of a whole prompt, a block of queries at a time: what lies ahead of a block is not computed.
    Returns (queries, heads, head_dim) by blocks."""
    heads, n, _ = query.shape
    if heads != len(key):
        key, value = (x.repeat_interleave(heads // len(x), dim=0) for x in (key, value))
    key = key.transpose(1, 2)
    found = []
    for begin in range(0, n, BLOCK):
        end = min(begin + BLOCK, n)
        ahead = _ahead()[: end - begin, IN_BLOCKS.stop - begin : IN_BLOCKS.stop + end - begin]
        logits = torch.baddbmm(ahead, query[:, begin:end], key[:, :, :end], alpha=scaling)  # (heads, block, keys)
        found.append(torch.bmm(logits.softmax(-1), value[:, :end]).transpose(0, 1))
    return found


@cache
def _ahead() -> Tensor:
    """What is added to a block's logits: -inf for keys ahead of their query, which only the last of its keys can be.

    Not made on import: torch's threads would be there before a process forks, and its children would wait for them.
    """
    return torch.cat([torch.zeros(BLOCK, IN_BLOCKS.stop), torch.full((BLOCK, BLOCK), -torch.inf).triu(1)], dim=1)
