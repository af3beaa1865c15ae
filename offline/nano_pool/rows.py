r"""What the nano models are trained on: running-total problems as rows of tokens, every row used once.

A direct row asks a chain after each of its statements at once, for all these questions share their beginning:

    <|im_start|>user\nFind the final number. Take 3. Add 4.<|im_end|>\n<|im_start|>assistant\n7 \boxed{7}<|im_end|>
                                          ^ after "Take 3." too: ...<|im_start|>assistant\n3 \boxed{3}<|im_end|>

Each question sees its own beginning and nothing of the others, and its positions go on from there, so that to the model
it looks as it will when it is asked alone. A stepwise row asks the whole chain, and shows how each total comes about.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from offline.benchmarks.running_total import Chain, RunningTotal, Step, apply, draw, total

HEAD = "<|im_start|>user\n"
TAIL = "<|im_end|>\n<|im_start|>assistant\n"
END = "<|im_end|>"


@dataclass(frozen=True)
class Row:
    token_ids: list[int]
    positions: list[int]
    seen: list[int]
    """How many of the row's first tokens a token sees, beside those of its own question up to itself."""
    question: list[int]
    """Which question a token belongs to; 0: their common beginning."""
    learnt: list[bool]
    """Whether the token is part of an answer."""


@dataclass(frozen=True)
class Batch:
    """Rows padded to one length, (rows, tokens) each."""

    token_ids: NDArray[np.int64]
    positions: NDArray[np.int64]
    visible: NDArray[np.bool_]
    """Which token (second axis) sees which (third), (rows, tokens, tokens)."""
    learnt: NDArray[np.bool_]


def direct_row(chain: Chain, tokenizer: Tokenizer) -> Row:
    """The chain, asked after each statement and answered at once."""
    trunk = _encode(tokenizer, HEAD + chain.question)
    ends = []
    for statement in chain.statements:
        trunk = trunk + _encode(tokenizer, " " + statement)
        ends.append(len(trunk))
    row = Row(list(trunk), list(range(len(trunk))), [0] * len(trunk), [0] * len(trunk), [False] * len(trunk))
    tail = _encode(tokenizer, TAIL)
    for question, end in enumerate(ends, start=1):
        answer = _encode(tokenizer, direct_answer(chain.steps[:question]) + END)
        n = len(tail) + len(answer)
        row.token_ids.extend(tail + answer)
        row.positions.extend(range(end, end + n))
        row.seen.extend([end] * n)
        row.question.extend([question] * n)
        row.learnt.extend([False] * len(tail) + [True] * len(answer))
    return row


def stepwise_row(chain: Chain, tokenizer: Tokenizer) -> Row:
    """The whole chain, with every step written down before the answer."""
    asked = _encode(tokenizer, HEAD + chain.text + TAIL)
    answer = _encode(tokenizer, stepwise_answer(chain.steps) + END)
    n = len(asked) + len(answer)
    learnt = [False] * len(asked) + [True] * len(answer)
    return Row(asked + answer, list(range(n)), [0] * n, [0] * n, learnt)


def direct_answer(steps: Sequence[Step]) -> str:
    value = total(list(steps))
    return rf"{value} \boxed{{{value}}}"


def stepwise_answer(steps: Sequence[Step]) -> str:
    r"""`4 * 2 = 8 + 4 = 12; 9 - 4 = 5 \boxed{5}`: one part for each statement that starts anew."""
    parts: list[str] = []
    value = 0
    for kind, operand in steps:
        value = apply(value, (kind, operand))
        if kind == "=":
            parts.append(str(value))
        else:
            parts[-1] += f" {kind} {operand} = {value}"
    return rf"{'; '.join(parts)} \boxed{{{value}}}"


def chains(seed: int | str) -> Iterator[Chain]:
    """Without end, and none whose problem a validation or test split could hold."""
    rng = random.Random(seed)  # noqa: S311 - problems, not secrets
    while True:
        chain = draw(rng)
        if RunningTotal.split_of(chain.text) == "train":
            yield chain


def batch(rows: Sequence[Row]) -> Batch:
    longest = max(len(row.token_ids) for row in rows)
    longest += -longest % 8  # few different shapes

    def padded(values: Sequence[Sequence[int]]) -> NDArray[np.int64]:
        return np.array([[*value, *[0] * (longest - len(value))] for value in values], dtype=np.int64)

    at = np.arange(longest)
    seen, question = padded([row.seen for row in rows]), padded([row.question for row in rows])
    own = (question[:, :, None] == question[:, None, :]) & (at[None, :, None] >= at[None, None, :])
    return Batch(
        token_ids=padded([row.token_ids for row in rows]),
        positions=padded([row.positions for row in rows]),
        visible=own | (at < seen[:, :, None]),
        learnt=padded([row.learnt for row in rows]).astype(bool),
    )


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text).ids
    return ids
