"""The forward pass of Llama-like models on packed prompts: what Transformers computes, less what is not read.

In the deepest block, only the tokens that are read go through queries, output and feed-forward; of the others, keys and
values are all that anything depends on. That is most of a block's products.

Small models spend as long on the way to a product as in it, so a block's weights are looked up once, and queries, keys
and values are one product. What the first block reads of a token depends on that token alone: of a small vocabulary, it
is looked up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, rms_norm, silu

from probes.engine.attention import attend
from probes.engine.attention_alone import Attention
from probes.engine.loading import longest_alike
from probes.engine.packing import Packing

LEAN = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose blocks are: RMS norm, attention with rotated queries and keys, RMS norm, gated feed-forward."""
TABLE_BYTES = 2**24
"""Of what the first block reads of every token, at the most."""


@dataclass(frozen=True)
class Linear:
    weight: Tensor
    """(out, in)"""
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual + self(x)"""
        onto = torch.addmm(residual, x, self.weight.t())
        return onto if self.bias is None else onto.add_(self.bias)

    def rows(self, rows: slice) -> "Linear":
        return Linear(self.weight[rows], None if self.bias is None else self.bias[rows])


@dataclass(frozen=True)
class Norm:
    weight: Tensor | None
    """None: it is in the weights of what comes after."""
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        if x.dtype != torch.float32:
            return rms_norm(x, (x.shape[-1],), self.weight, self.epsilon)
        # The same in fewer steps, which a small model feels.
        size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        normed: Tensor = x * size.square_().mul_(1 / x.shape[-1]).add_(self.epsilon).rsqrt_()
        return normed if self.weight is None else normed.mul_(self.weight)

    def within(self, *products: Linear) -> "Norm":
        """This norm before products that from now on take its weight upon themselves."""
        if self.weight is None or self.weight.dtype != torch.float32:
            return self
        for product in products:
            product.weight.mul_(self.weight)
        return replace(self, weight=None)


class Block:
    """One block of Transformers' model.

    Its query, key and value weights become views of one tensor, so that they take no memory twice. In that tensor, the
    two dimensions of a head that are rotated together stand side by side, so that one complex product rotates them all:
    logits are the same in any order. In single precision, the norms' weights go into the products after them. So
    Transformers' own block must not be called any more.
    """

    def __init__(self, config: Any, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.size: int = attention.head_dim
        self.how = Attention(attention.scaling, _window(config, attention))
        self.queries = attention.q_proj.out_features // self.size
        self.keys = attention.k_proj.out_features // self.size
        pairs = torch.arange(self.size).view(2, -1).t().flatten()
        rotated = torch.arange((self.queries + self.keys) * self.size).view(-1, self.size)[:, pairs].flatten()
        self.qkv = _joined((attention.q_proj, attention.k_proj, attention.v_proj), rotated)
        self.q = self.qkv.rows(slice(0, self.queries * self.size))
        self.kv = self.qkv.rows(slice(self.queries * self.size, None))
        self.qk_norms: tuple[Norm, Norm] | None = None
        if hasattr(attention, "q_norm"):
            self.qk_norms = _norm(attention.q_norm, pairs), _norm(attention.k_norm, pairs)
        self.output = _linear(attention.o_proj)
        self.gate, self.up, self.down = map(_linear, (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        self.attention_norm = _norm(layer.input_layernorm).within(self.qkv)
        self.mlp_norm = _norm(layer.post_attention_layernorm).within(self.gate, self.up)
        self.activation: Callable[[Tensor], Tensor] = mlp.act_fn
        if config.hidden_act == "silu":
            self.activation = partial(silu, inplace=True)

    def read(self, hidden: Tensor) -> Tensor:
        """Queries, keys and values of tokens: (tokens, d_model) to (tokens, (heads + 2 kv_heads) * head_dim)."""
        return self.qkv(self.attention_norm(hidden))

    def __call__(
        self,
        hidden: Tensor,
        turn: Tensor,
        packing: Packing,
        block: int,
        tail: int | None,
        read: Tensor | None,
    ) -> Tensor:
        """
        Args:
            hidden: (tokens, d_model)
            turn: complex numbers by which queries and keys are rotated, (tokens, head_dim / 2)
            tail: only the last `tail` tokens of every prompt are asked for; None: all.
            read: of all tokens, where it is known.

        Returns: (queries, d_model)
        """
        if tail is None:
            heads = self._heads(self.read(hidden) if read is None else read)
            query, key, value = heads.split_with_sizes([self.queries, self.keys, self.keys])
            query_turn = turn
        else:
            normed = self.attention_norm(hidden)
            key, value = self._heads(self.kv(normed)).split_with_sizes([self.keys, self.keys])
            rows = packing.tails(tail)
            query = self._heads(self.q(normed[rows]))
            hidden, query_turn = hidden[rows], turn[rows]
        if self.qk_norms is not None:
            query, key = self.qk_norms[0](query), self.qk_norms[1](key)
        if tail is None and self.qk_norms is None:  # both at once, as they stand side by side
            _rotate(heads[: self.queries + self.keys], turn)
        else:
            _rotate(query, query_turn)
            _rotate(key, turn)
        attended = attend(query, key, value, packing, block, self.how, tail)
        hidden = self.output.onto(hidden, attended.flatten(1))
        normed = self.mlp_norm(hidden)
        return self.down.onto(hidden, self.activation(self.gate(normed)).mul_(self.up(normed)))

    def _heads(self, x: Tensor) -> Tensor:
        """(tokens, heads * head_dim) to (heads, tokens, head_dim)"""
        return x.view(len(x), -1, self.size).transpose(0, 1)


class LeanForward:
    """
    Args:
        model: Transformers' base model, cut; its final norm is an identity where that is not asked for.
    """

    @torch.no_grad()
    def __init__(self, model: Any) -> None:
        self._model = model
        self._blocks = [Block(model.config, layer) for layer in model.layers]
        self._first_read = self._table(model.embed_tokens.weight)
        self._turns = torch.empty(0)
        self._turns_change = longest_alike(model.config) is not None
        """With the longest prompt at hand."""

    def __call__(self, packing: Packing, layers: set[int], tail: int | None) -> dict[int, Tensor]:
        """Hidden states by layer, (tokens, d_model).

        Args:
            tail: the deepest layer is asked of the last `tail` tokens of every prompt alone, (queries, d_model).
        """
        token_ids, positions = packing.row()
        hidden = self._model.embed_tokens(token_ids)
        turn = self._turns_up_to(packing.keys.longest, hidden)[positions]
        deepest = max(layers)
        found = {0: hidden} if 0 in layers else {}
        for i, block in enumerate(self._blocks[:deepest]):
            read = None if i or self._first_read is None else embedding(token_ids, self._first_read)
            hidden = block(hidden, turn, packing, i, tail if i + 1 == deepest else None, read)
            if i + 1 == len(self._blocks):
                hidden = self._model.norm(hidden)
            if i + 1 in layers:
                found[i + 1] = hidden
        return found

    def _turns_up_to(self, positions: int, like: Tensor) -> Tensor:
        """Complex numbers by which queries and keys are rotated, by position: (>= positions, head_dim / 2)."""
        if len(self._turns) < positions or self._turns_change:
            at = torch.arange(positions, device=like.device)
            cos, sin = (table[0].float() for table in self._model.rotary_emb(like, at[None]))
            half = cos.shape[-1] // 2  # the other half of the tables is the same
            self._turns = torch.complex(cos[..., :half], sin[..., :half])
        return self._turns

    def _table(self, tokens: Tensor) -> Tensor | None:
        """What the first block reads of every token there is, if that is little: (vocabulary, ...)."""
        first = self._blocks[0]
        if len(tokens) * len(first.qkv.weight) * tokens.element_size() > TABLE_BYTES:
            return None
        return first.read(tokens)


def _joined(modules: Sequence[Any], first_rows: Tensor) -> Linear:
    """Several linear modules as one, theirs from now on views of it.

    Args:
        first_rows: the order of the first rows; all others stay in place.
    """
    weight = torch.cat([module.weight for module in modules])
    weight[: len(first_rows)] = weight[first_rows]
    bias = None if modules[0].bias is None else torch.cat([module.bias for module in modules])
    if bias is not None:
        bias[: len(first_rows)] = bias[first_rows]
    sizes = [module.out_features for module in modules]
    for module, own in zip(modules, torch.split(weight, sizes), strict=True):
        module.weight.data = own
    if bias is not None:
        for module, own in zip(modules, torch.split(bias, sizes), strict=True):
            module.bias.data = own
    return Linear(weight, bias)


def _linear(module: Any) -> Linear:
    return Linear(module.weight, module.bias)


def _norm(module: Any, order: slice | Tensor = slice(None)) -> Norm:
    return Norm(module.weight[order], module.variance_epsilon)


def _rotate(x: Tensor, turn: Tensor) -> None:
    """In place, (heads, tokens, head_dim): two dimensions beside one another are one complex number, in single
    precision."""
    exact = x.float()
    torch.view_as_complex(exact.view(*x.shape[:-1], -1, 2)).mul_(turn)
    if exact is not x:
        x.copy_(exact)


def _window(config: Any, attention: Any) -> int | None:
    """Tokens that a token sees; Mistral has it for all blocks, others by block."""
    window: int | None = config.sliding_window if config.model_type == "mistral" else None
    return getattr(attention, "sliding_window", window)
