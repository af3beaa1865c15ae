"""What a parent and its workers say to each other: JSON, one line each, over the worker's stdin and stdout."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from probes.artifact import Artifact
from probes.engine.served import decode_artifact, encode_artifact
from server.config import Settings
from server.live import Order

MAX_LINE_BYTES = 2**24


def encode(message: Mapping[str, Any]) -> bytes:
    return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)


def decode(line: bytes) -> dict[str, Any]:
    message: dict[str, Any] = orjson.loads(line)
    return message


def encode_order(settings: Settings, artifacts: Mapping[str, Artifact], engine_url: str | None) -> dict[str, Any]:
    """Settings, probes as the parent found them, and its engine: all workers serve the same."""
    probes = {
        arm: {
            "artifact": encode_artifact(one),
            "revision": one.revision,
            "source": one.source,
            "from_cache": one.from_cache,
            "mismatches": one.mismatches,
        }
        for arm, one in artifacts.items()
    }
    return {
        "settings": settings.model_dump(mode="json", by_alias=True),
        "folder": str(settings.resolve("")),
        "probes": probes,
        "engine_url": engine_url,
    }


def decode_order(sent: Mapping[str, Any]) -> Order:
    """
    Raises:
        ProbeError: a probe is no longer what the parent found.
    """
    settings = Settings.model_validate(sent["settings"])
    settings._folder = Path(sent["folder"])
    artifacts = {
        arm: replace(
            decode_artifact(one["artifact"]),
            revision=one["revision"],
            source=one["source"],
            from_cache=one["from_cache"],
            mismatches=tuple(one["mismatches"]),
        )
        for arm, one in sent["probes"].items()
    }
    return Order(settings, artifacts, sent["engine_url"])
