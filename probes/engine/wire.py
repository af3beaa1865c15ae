"""What the gateway and its engine process say to each other: one JSON object per line."""

from collections.abc import Sequence

import numpy as np
import orjson

from probes.base import ProbeError
from probes.engine.base import Prompt, Scores

LINE_BYTES = 2**26
"""No line is longer: a micro-batch has some ten thousand tokens."""


def encode_prompts(prompts: Sequence[Prompt]) -> bytes:
    return orjson.dumps([prompt.token_ids for prompt in prompts]) + b"\n"


def decode_prompts(line: bytes) -> list[Prompt]:
    return [Prompt(tuple(map(tuple, passes))) for passes in orjson.loads(line)]


def encode_scores(scores: Scores) -> bytes:
    return orjson.dumps({"success": scores.success.tolist()}) + b"\n"


def encode_ready() -> bytes:
    return b"{}\n"


def encode_error(message: str) -> bytes:
    return orjson.dumps({"error": message}) + b"\n"


def decode_scores(line: bytes) -> Scores | None:
    """Scores; None where the line only says that the engine is ready.

    Raises:
        ProbeError: the engine reports an error.
    """
    answer = orjson.loads(line)
    if "error" in answer:
        raise ProbeError(answer["error"])
    return Scores(np.array(answer["success"], dtype=np.float64)) if "success" in answer else None
