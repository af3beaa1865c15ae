"""What the gateway and its engine process say to each other: one JSON object per line."""

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import orjson

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.card import Pass
from probes.engine.base import Prompt, Scores
from probes.reference import load_probe

LINE_BYTES = 2**26
"""No line is longer: a micro-batch has some ten thousand tokens."""


def encode_artifact(artifact: Artifact) -> str:
    """An argument of the engine process: where the artifact is, what it must be, and how its pass runs here."""
    pass_ = None if artifact.pass_ is None else artifact.pass_.model_dump(mode="json")
    return orjson.dumps([str(artifact.folder.absolute()), _head_sha256(artifact), pass_]).decode()


def decode_artifact(argument: str) -> Artifact:
    """The artifact, read again; what the gateway has verified is not verified once more.

    Raises:
        ProbeError: it does not load, or is another than the gateway read, which names it in its answers.
    """
    folder, head_sha256, pass_ = orjson.loads(argument)
    artifact = load_probe(folder, verify=False)
    if _head_sha256(artifact) != head_sha256:
        raise ProbeError(f"{folder} has changed on disk: send SIGHUP to the gateway to take it, or restore it")
    return replace(artifact, pass_=None if pass_ is None else Pass.model_validate(pass_))


def _head_sha256(artifact: Artifact) -> str:
    """Hash of all that decisions rest on but the pass, which travels: a legacy card leaves part of it open."""
    return replace(artifact, card=artifact.card.model_copy(update={"pass_": None})).predictions_sha256


def encode_prompts(prompts: Sequence[Prompt]) -> bytes:
    return orjson.dumps([[prompt.token_ids, prompt.text] for prompt in prompts]) + b"\n"


def decode_prompts(line: bytes) -> list[Prompt]:
    return [Prompt(tuple(map(tuple, passes)), text) for passes, text in orjson.loads(line)]


def encode_scores(scores: Scores) -> bytes:
    return orjson.dumps(scores, option=orjson.OPT_SERIALIZE_NUMPY) + b"\n"


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
    if not answer:
        return None
    # JSON writes NaN as null, which becomes NaN again.
    return Scores(*(np.array(answer[field.name], dtype=np.float64) for field in fields(Scores)))
