"""What `pika probe-server`, the plug-in for vLLM and the gateway's client agree on. Imports neither vLLM nor torch."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from probes.artifact import Artifact
from probes.base import ProbeError
from probes.card import Pass
from probes.engine import heads
from probes.engine.vllm_plugin import STOCK
from probes.source import model_file, read_json

INSTEAD = "let the gateway's own engine read it: an `engine` section without `kind: vllm`"


def check_servable(artifact: Artifact) -> None:
    """
    Raises:
        ProbeError: vLLM cannot serve this probe; says what can.
    """
    if artifact.probe.reads == "sequence":
        raise ProbeError(
            f"the {artifact.card.kind} probe of arm {artifact.card.target.arm!r} reads the activations of all prompt "
            f"tokens, more than vLLM keeps of a prompt: {INSTEAD}; or train a linear_eoi or mlp probe"
        )


def overrides(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    """What vLLM's `--hf-overrides` must say for it to serve probes that read one probe model.

    Raises:
        ProbeError: the plug-in has not this architecture, or the model does not fit a probe.
    """
    pass_ = pass_of(artifacts)
    config = read_json(model_file(pass_, "config.json"))
    architecture = next(iter(config.get("architectures") or ["no architecture"]))
    if architecture not in STOCK:
        raise ProbeError(
            f"probe model {pass_.probe_model} is {architecture}, of which the plug-in for vLLM cannot read activations "
            f"({', '.join(STOCK)}): {INSTEAD}"
        )
    full_depth = int(config["num_hidden_layers"])
    layers = {site.layer for artifact in artifacts for site in heads.sites(artifact)}
    if any(artifact.probe.next_token for artifact in artifacts):
        layers.add(full_depth)
    depth = max(1, *layers)
    if depth > full_depth:
        raise ProbeError(f"{pass_.probe_model} has layers 0 to {full_depth}; a probe reads layer {depth}")
    for artifact in artifacts:
        if artifact.card.d_model != config["hidden_size"]:
            raise ProbeError(
                f"{artifact.folder}: the probe reads {artifact.card.d_model} dimensions, its probe model "
                f"{pass_.probe_model} has {config['hidden_size']}: train the probe anew with `pika train`"
            )
    types = config.get("layer_types")
    return {
        "architectures": [f"Probe{architecture}"],
        "num_hidden_layers": depth,
        **({} if types is None else {"layer_types": types[:depth]}),
        # The layers stand here too since vLLM keeps compiled graphs by what its configuration says.
        "pika_layers": sorted(layers),
        "pika_reads_final": full_depth in layers,
        "pika_probes": [str(artifact.folder.absolute()) for artifact in artifacts],
    }


def pass_of(artifacts: Sequence[Artifact]) -> Pass:
    """The pass whose probe model one server runs; prompts' recipes may differ, as the gateway renders.

    Raises:
        ProbeError: they are of several probe models, revisions or dtypes.
    """
    passes = [artifact.pass_ for artifact in artifacts if artifact.pass_ is not None]
    runs = {(one.probe_model, one.revision, one.dtype): one for one in passes}
    if len(runs) != 1:
        each = "; ".join(f"{model} at revision {revision} in {dtype}" for model, revision, dtype in runs) or "none"
        raise ProbeError(f"one server runs one probe model, these probes read {each}: start a server for each")
    return passes[0]


def probe_name(artifact: Artifact) -> str:
    """By which servers and gateways know a probe, and what its probe model is run in: equal names, equal scores."""
    # The pass travels on its own: where the probe model lies differs among machines, and prompts come as token ids.
    head = replace(artifact, card=artifact.card.model_copy(update={"pass_": None})).predictions_sha256
    dtype = None if artifact.pass_ is None else artifact.pass_.dtype
    return f"probe-{_sha256([head, dtype])}"


def served_names(artifacts: Sequence[Artifact]) -> list[str]:
    """vLLM's `--served-model-name`s: of all the probes together, which requests name, then of each, in their order."""
    names = [probe_name(artifact) for artifact in artifacts]
    return [f"probes-{_sha256(names)}", *names]


def _sha256(facts: Sequence[str | None]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
