"""What is computed of all prompts at once, as GPUs have it, equals what is computed of each alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probes.engine.attention_alone import Attention, attend_alone
from probes.engine.attention_together import side_by_side
from probes.engine.packing import Packing, Prefix, Rows, Span

HEADS, KV_HEADS, SIZE = 4, 2, 8
CPU = torch.device("cpu")
LENGTHS = [1, 7, 30, 7]
PLAIN = Attention(SIZE**-0.5)


@pytest.mark.parametrize(
    "how",
    [
        PLAIN,
        replace(PLAIN, window=5),
        replace(PLAIN, softcap=1.0),
        replace(PLAIN, sinks=torch.tensor([0.5, -1.0, 2.0, 0.0])),
        replace(PLAIN, window=5, softcap=1.0, sinks=torch.ones(HEADS)),
    ],
    ids=["plain", "window", "softcap", "sinks", "all"],
)
@pytest.mark.parametrize("tail", [None, 1, 5])
@pytest.mark.parametrize("reused", [[0, 0, 0, 0], [0, 12, 3, 0]], ids=["whole", "after-prefixes"])
def test_each_prompt_as_if_it_were_alone(how: Attention, tail: int | None, reused: list[int]) -> None:
    torch.manual_seed(0)
    packing = Packing(
        [Span(np.zeros(n, dtype=np.int64), Prefix() if k else None, k) for n, k in zip(LENGTHS, reused, strict=True)],
        CPU,
    )
    asked = packing.asked(tail)
    query = torch.randn(HEADS, sum(asked.lengths), SIZE)
    key, value = torch.randn(2, KV_HEADS, sum(packing.keys.lengths), SIZE).unbind()
    each = zip(
        torch.split(query, asked.lengths, dim=1),
        torch.split(key, packing.keys.lengths, dim=1),
        torch.split(value, packing.keys.lengths, dim=1),
        strict=True,
    )
    alone = torch.cat([piece for one in each for piece in attend_alone(*one, packing, how)])
    torch.testing.assert_close(side_by_side(query, key, value, asked, packing.keys, how), alone)


def test_rows_tell_where_prompts_stand() -> None:
    rows = Rows([2, 3], CPU)
    assert rows.side_by_side.tolist() == [[0, 1, 1], [2, 3, 4]]
    assert rows.among_these.tolist() == [0, 1, 3, 4, 5]
