"""Scores of prompts that were computed lately: an equal prompt costs nothing."""

import hashlib
from array import array
from collections import OrderedDict

from probes.base import FloatArray
from probes.engine.base import Prompt


def key_of(prompt: Prompt) -> bytes:
    """16 bytes that are equal for equal prompts alone: by token ids and text, so that no prompt is kept."""
    digest = hashlib.blake2b(digest_size=16)
    for token_ids in prompt.token_ids:
        digest.update(len(token_ids).to_bytes(8, "little"))
        digest.update(array("i", token_ids).tobytes())
    digest.update(prompt.text.encode("utf-8", "replace"))
    return digest.digest()


class ScoreCache:
    """The rows of the `max_prompts` prompts that were asked for last; 0 keeps none."""

    def __init__(self, max_prompts: int) -> None:
        self._max_prompts = max_prompts
        self._rows: OrderedDict[bytes, FloatArray] = OrderedDict()

    def get(self, key: bytes) -> FloatArray | None:
        """(3, probes), see `Scores`; None where it is not known."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, key: bytes, row: FloatArray) -> None:
        self._rows[key] = row
        self._rows.move_to_end(key)
        while len(self._rows) > self._max_prompts:
            self._rows.popitem(last=False)

    def __len__(self) -> int:
        return len(self._rows)
