"""Prompts packed side by side in one row, and what a model's blocks share of where each begins and ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ids = NDArray[np.int64]
"""Token ids."""


@dataclass(frozen=True)
class Prefix:
    """What attention needs of tokens with which prompts begin."""

    keys: list[Tensor] = field(default_factory=list)
    """By block, (kv_heads, tokens, head_dim), rotated."""
    values: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Span:
    """What is computed of one prompt."""

    token_ids: Ids
    """The prompt's last tokens; all of them without a prefix."""
    prefix: Prefix | None = None
    reused: int = 0
    """How many tokens of the prefix come before them."""


@dataclass(frozen=True)
class Rows:
    """Where prompts stand that are one after the other."""

    lengths: list[int]
    device: torch.device

    @cached_property
    def ends(self) -> Tensor:
        """Row after each prompt's last token, (batch,)."""
        return torch.tensor(list(accumulate(self.lengths)), device=self.device)

    @cached_property
    def starts(self) -> Tensor:
        """Row of each prompt's first token, (batch,)."""
        return torch.tensor([0, *accumulate(self.lengths[:-1])], device=self.device)

    @cached_property
    def bounds(self) -> Tensor:
        """Of all prompts, (batch + 1,), as kernels take them."""
        return torch.tensor([0, *accumulate(self.lengths)], dtype=torch.int32, device=self.device)

    @cached_property
    def longest(self) -> int:
        return max(self.lengths)

    @cached_property
    def side_by_side(self) -> Tensor:
        """Rows of the tokens of every prompt, filled up to the longest with its last: (batch, longest)."""
        at = torch.arange(self.longest, device=self.device)
        return torch.minimum(self.starts[:, None] + at, self.ends[:, None] - 1)

    @cached_property
    def among_these(self) -> Tensor:
        """Where the prompts' tokens stand in `side_by_side`, flattened: (rows,)."""
        found = [np.arange(n) + i * self.longest for i, n in enumerate(self.lengths)]
        return torch.from_numpy(np.concatenate(found)).to(self.device)


class Packing:
    """Prompts in one row, and what its blocks share.

    Args:
        keep: gets the keys and values of the row, which then is one prompt.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device, keep: Prefix | None = None) -> None:
        self.spans = spans
        self.device = device
        self.keep = keep
        self.rows = Rows([len(span.token_ids) for span in spans], device)
        self.keys = Rows([span.reused + n for span, n in zip(spans, self.rows.lengths, strict=True)], device)
        """What each prompt's last token sees, its prefix included."""
        self._prefixes = list({id(span.prefix): span.prefix for span in spans if span.prefix is not None}.values())
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._biases: dict[tuple[int, int, int | None, int], Tensor] = {}

    def row(self) -> tuple[Tensor, Tensor]:
        """Token ids and positions, (tokens,) each."""
        positions = [np.arange(span.reused, n) for span, n in zip(self.spans, self.keys.lengths, strict=True)]
        both = np.stack([np.concatenate([span.token_ids for span in self.spans]), np.concatenate(positions)])
        token_ids, at = torch.from_numpy(both).to(self.device)
        return token_ids, at

    def asked(self, tail: int | None) -> Rows:
        """The queries, if only the last `tail` tokens of every prompt are; None: all tokens."""
        return self.rows if tail is None else Rows([min(tail, n) for n in self.rows.lengths], self.device)

    def tails(self, tail: int) -> Tensor:
        """Rows of the last tokens of every prompt, (queries,)."""
        ends = accumulate(self.rows.lengths)
        found = [np.arange(end - n, end) for end, n in zip(ends, self.asked(tail).lengths, strict=True)]
        return torch.from_numpy(np.concatenate(found)).to(self.device)

    def with_prefixes(self, key: Tensor, value: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """What a block's queries see, each prompt's after its prefix's: (kv_heads, tokens, head_dim) to
        (kv_heads, keys, head_dim)."""
        if not self._prefixes:
            return key, value
        keys = torch.cat([*(prefix.keys[block] for prefix in self._prefixes), key], dim=1)
        values = torch.cat([*(prefix.values[block] for prefix in self._prefixes), value], dim=1)
        return keys.index_select(1, self._seen), values.index_select(1, self._seen)

    @cached_property
    def _seen(self) -> Tensor:
        """Where the keys of every prompt stand, once those of all prefixes come before those of the row: (keys,)."""
        *begins, at = accumulate((prefix.keys[0].shape[1] for prefix in self._prefixes), initial=0)
        begin_of = {id(prefix): begin for prefix, begin in zip(self._prefixes, begins, strict=True)}
        found = []
        for span, n in zip(self.spans, self.rows.lengths, strict=True):
            if span.prefix is not None:
                begin = begin_of[id(span.prefix)]
                found.append(np.arange(begin, begin + span.reused))
            found.append(np.arange(at, at + n))
            at += n
        return torch.from_numpy(np.concatenate(found)).to(self.device)

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor | None:
        """Which keys the last queries of one prompt see, (queries, keys); None: all."""
        if queries == 1 and (window is None or window >= keys):
            return None
        key = (queries, keys, window)
        if key not in self._masks:
            at = torch.arange(keys - queries, keys, device=self.device)[:, None]
            ahead = at - torch.arange(keys, device=self.device)
            self._masks[key] = (ahead >= 0) if window is None else (ahead >= 0) & (ahead < window)
        return self._masks[key]

    def bias(self, queries: int, keys: int, window: int | None, times: int, dtype: torch.dtype) -> Tensor | None:
        """The same as what is added to logits, for so many heads one below the other: (times * queries, keys)."""
        mask = self.mask(queries, keys, window)
        if mask is None:
            return None
        key = (queries, keys, window, times)
        if key not in self._biases:
            bias = torch.zeros(mask.shape, dtype=dtype, device=self.device).masked_fill_(~mask, -torch.inf)
            self._biases[key] = bias.repeat(times, 1)
        return self._biases[key]
