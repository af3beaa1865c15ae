"""What an engine serves, as processes tell each other: probes by folder and hash, and a hash for all of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import orjson

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.card import Pass
from probes.reference import load_probe


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


def served_sha256(artifacts: Sequence[Artifact]) -> bytes:
    """Equal where two machines serve the same probes in the same order, wherever their folders are: 32 bytes.

    Each has checked the probe models that it has against the probes' cards.
    """
    facts = [
        [_head_sha256(one), None if one.pass_ is None else one.pass_.model_dump(mode="json", exclude={"probe_model"})]
        for one in artifacts
    ]
    return hashlib.sha256(orjson.dumps(facts)).digest()


def _head_sha256(artifact: Artifact) -> str:
    """Hash of all that decisions rest on but the pass, which travels: a legacy card leaves part of it open."""
    return replace(artifact, card=artifact.card.model_copy(update={"pass_": None})).predictions_sha256
