"""The format of artifacts: its schema is published, and what was written under version 1 is read for ever."""

import json
from pathlib import Path

import numpy as np
import pytest

from probes import calibration, output_tokens, statistics
from probes.artifact import load_artifact
from probes.base import Inputs
from probes.schema import FILE, schema_text
from tests.support.probes import NANO_POOL, card

V1 = Path(__file__).parent / "golden/probe-v1"
"""A linear_eoi probe with all that may be beside it. Never to be changed: releases must go on to read it as it is."""


def activations() -> np.ndarray:
    """Three prompts', (3, 96)."""
    return np.sin(np.arange(288) * 0.37).reshape(3, 96).astype(np.float32) * np.float32(3)


def test_version_1_is_read_and_predicts_what_it_did() -> None:
    artifact = load_artifact(V1, verify=False)
    found = artifact.card
    assert (found.schema_version, found.kind, found.d_model) == (1, "linear_eoi", 96)
    assert artifact.probe.site == found.site
    assert found.site is not None
    assert (found.site.layer, found.site.position) == (1, -2)
    raw = artifact.probe.raw(Inputs(activations={found.site: activations()}))
    expected = json.loads((V1.parent / "probe-v1.json").read_text())
    np.testing.assert_allclose(raw, expected["raw"], rtol=1e-6)
    np.testing.assert_allclose(calibration.apply(found.calibration, raw), expected["success_probability"], rtol=1e-6)
    assert found.output_tokens is not None
    assert found.statistics is not None
    tokens = output_tokens.predict([(found.output_tokens, artifact.beside)], activations())[:, 0]
    np.testing.assert_allclose(tokens, expected["output_tokens"], rtol=1e-6)
    percentile = statistics.percentile(found.statistics, artifact.beside, activations())
    np.testing.assert_allclose(percentile, expected["activation_percentile"], rtol=1e-6)
    assert found.pass_ is not None
    assert (V1 / found.pass_.probe_model).resolve() == NANO_POOL / "nano-small"
    assert found.pass_.recipe.chat_template_sha256 is not None
    assert found.canary_token_ids is not None


def test_the_published_schema_is_the_cards() -> None:
    assert FILE.read_text("utf-8") == schema_text(), "run python -m probes.schema"


def test_the_schema_tells_good_cards_from_bad_ones() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json.loads(FILE.read_text("utf-8")))
    good = json.loads((V1 / "config.json").read_text("utf-8"))
    validator.validate(good)
    validator.validate(card().model_dump(mode="json", by_alias=True))
    for name in ("schema_version", "pass", "target", "calibration"):
        assert not validator.is_valid({key: value for key, value in good.items() if key != name})
    for change in ({"colour": "red"}, {"schema_version": 2}, {"k": "8"}, {"site": {"layer": -1, "position": -1}}):
        assert not validator.is_valid(good | change)


def test_the_schema_says_what_fields_mean() -> None:
    schema = json.loads(FILE.read_text("utf-8"))
    assert "Hugging Face index" in schema["$defs"]["Site"]["properties"]["layer"]["description"]
    assert "Hub id, or a path" in schema["$defs"]["Pass"]["properties"]["probe_model"]["description"]
