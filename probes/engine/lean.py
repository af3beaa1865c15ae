"""The forward pass of Llama-like models on packed prompts: what Transformers computes, less what is not read.

In the deepest block, only the tokens that are read go through queries, output and feed-forward; of the others, keys and
values are all that anything depends on. That is most of a block's products.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import rms_norm

from probes.engine.attention import Packing, attend

LEAN = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks are: RMS norm, attention with rotated queries and keys, RMS norm, gated feed-forward."""


def lean_forward(model: Any, packing: Packing, layers: set[int], tail: int | None) -> dict[int, Tensor]:
    """Hidden states by layer, (tokens, d_model).

    Args:
        model: Transformers' base model, cut; its final norm is an identity where that is not asked for.
        tail: the deepest layer is asked of the last `tail` tokens of every prompt alone, (queries, d_model).
    """
    token_ids, positions = packing.row()
    hidden = model.embed_tokens(token_ids)
    cos, sin = (table[0, :, None] for table in model.rotary_emb(hidden, positions[None]))  # (tokens, 1, head_dim)
    deepest = max(layers)
    found = {0: hidden} if 0 in layers else {}
    for block in range(deepest):
        last = tail if block + 1 == deepest else None
        rows = None if last is None else _tails(packing, last, hidden.device)
        hidden = _block(model, block, hidden, cos, sin, packing, last, rows)
        if block + 1 == len(model.layers):
            hidden = model.norm(hidden)
        if block + 1 in layers:
            found[block + 1] = hidden
    return found


def _block(
    model: Any,
    block: int,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    packing: Packing,
    tail: int | None,
    rows: Tensor | None,
) -> Tensor:
    layer = model.layers[block]
    attention = layer.self_attn
    size = attention.head_dim
    normed = _norm(layer.input_layernorm, hidden)
    key = attention.k_proj(normed).unflatten(-1, (-1, size))  # (tokens, kv_heads, head_dim)
    value = attention.v_proj(normed).unflatten(-1, (-1, size))
    q_cos, q_sin = cos, sin
    if rows is not None:
        normed, hidden, q_cos, q_sin = normed[rows], hidden[rows], cos[rows], sin[rows]
    query = attention.q_proj(normed).unflatten(-1, (-1, size))
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    query, key = _rotate(query, q_cos, q_sin), _rotate(key, cos, sin)
    attended = attend(
        query.transpose(0, 1),
        key.transpose(0, 1),
        value.transpose(0, 1),
        packing,
        block,
        scaling=attention.scaling,
        window=_window(model.config, attention),
        tail=tail,
    )
    hidden = hidden + attention.o_proj(attended.flatten(1))
    return hidden + _feed_forward(layer.mlp, _norm(layer.post_attention_layernorm, hidden))


def _feed_forward(mlp: Any, x: Tensor) -> Tensor:
    gate = mlp.act_fn(mlp.gate_proj(x))  # (queries, d_feed_forward)
    down: Tensor = mlp.down_proj(gate.mul_(mlp.up_proj(x)))
    return down


def _norm(norm: Any, x: Tensor) -> Tensor:
    return rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(tokens, heads, head_dim), with tables (tokens, 1, head_dim) whose halves are equal."""
    half = x.shape[-1] // 2
    rotated = x * cos
    rotated[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    rotated[..., half:].addcmul_(x[..., :half], sin[..., :half])
    return rotated


def _window(config: Any, attention: Any) -> int | None:
    """Tokens that a token sees; Mistral has it for all blocks, others by block."""
    window: int | None = config.sliding_window if config.model_type == "mistral" else None
    return getattr(attention, "sliding_window", window)


def _tails(packing: Packing, tail: int, device: torch.device) -> Tensor:
    """Rows of the last tokens of every prompt, (queries,)."""
    rows, end = [], 0
    for length in packing.lengths:
        end += length
        rows.append(torch.arange(end - min(tail, length), end))
    return torch.cat(rows).to(device)
